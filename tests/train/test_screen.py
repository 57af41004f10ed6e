"""What is shown at the end of a run."""

import numpy as np
import pytest

from train.screen import show_results


@pytest.mark.parametrize("undefined", [None, float("nan")])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_an_undefined_metric_neither_wins_nor_loses(
    undefined: float | None, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"ours": {"f1": 0.5}, "baseline": {"f1": undefined}, "better": {"f1": 0.6 if mode == "max" else 0.4}}
    show_results(results, ours="ours", monitor="val/f1", mode=mode)
    printed = capsys.readouterr().out
    assert "loses to better" in printed
    assert "loses to baseline" not in printed


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_tie_is_no_loss(capsys: pytest.CaptureFixture[str], mode: str) -> None:
    for exact in (82 / 84, 84 / 82, 0.0):
        ours = float(np.float32(exact))
        show_results({"ours": {"f1": ours}, "same": {"f1": exact}}, ours="ours", monitor="val/f1", mode=mode)
    assert "loses" not in capsys.readouterr().out
