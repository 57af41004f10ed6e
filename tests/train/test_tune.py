"""Finding a learning rate and a batch size before training."""

import json
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningModule, Trainer

from train.config.check import check
from train.errors import ConfigError, DataError, DivergedError, StorageError
from train.run import make_data
from train.tune import memory
from train.tune.batch_size import Trial, Trials, no_faster_beyond, search
from train.tune.curve import Curve
from train.tune.learning_rate import Scheduled
from train.tune.rehearsal import one_of
from train.tune.settings import TuneSettings
from train.tune.tune import tune

from .conftest import small_run


@pytest.fixture
def composed(table: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes configs/tune.yaml on the small table; a range of few steps, sizes of little time."""

    def composed(*overrides: str) -> DictConfig:
        quick = ["lr.steps=150", "batch_size.seconds=0.05", "batch_size.most=512"]
        with initialize_config_module("configs", version_base="1.3"):
            cfg = compose("tune", [*arguments(table, tmp_path), *quick, *overrides])
        check(cfg, TuneSettings)
        return cfg

    return composed


def arguments(table: Path, folder: Path) -> list[str]:
    return [key for key in small_run(table, folder) if not key.startswith("baselines=")]


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


# The learning rate


def curve_of(loss: Callable[[float], float], *, num_steps: int = 700, noise: float = 0.0) -> Curve:
    """A range test whose loss is a function of the rate; mini-batches differ by a factor."""
    factors = np.exp(noise * np.random.default_rng(0).standard_normal(num_steps))
    curve = Curve(1e-6, 10.0, [loss(0.0) * factor for factor in factors])
    for step in range(num_steps):
        if curve.add(loss(curve.rate(step)) * factors[step]):
            break
    return curve


def falls_at(rate: float) -> Callable[[float], float]:
    """A loss that falls from 1 to 0.5, fastest at `rate`, and rises a hundred times as far on."""
    return lambda x: 1 - 0.5 / (1 + (rate / max(x, 1e-12)) ** 2) + (x / (100 * rate)) ** 3


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_suggestion_is_where_the_loss_falls_fastest_however_mini_batches_differ(rate: float, noise: float) -> None:
    curve = curve_of(falls_at(rate), noise=noise)
    suggestion = curve.suggestion()
    assert suggestion is not None
    assert rate / 1.5 < suggestion < rate * 1.5
    assert suggestion < curve.lowest() < 100 * rate


def test_the_test_ends_where_the_loss_is_four_times_the_best_or_not_finite() -> None:
    curve = curve_of(falls_at(1e-4))
    assert len(curve.losses) < 700
    assert curve.smoothed[-2][1] <= 4 * min(loss for _, loss in curve.smoothed) < curve.smoothed[-1][1]
    exploding = curve_of(lambda rate: falls_at(1e-3)(rate) if rate < 0.01 else math.inf)
    assert exploding.rate(len(exploding.losses)) == pytest.approx(0.01, rel=0.05)
    assert exploding.suggestion() == pytest.approx(1e-3, rel=0.5)


def test_a_loss_that_does_not_fall_gives_no_suggestion() -> None:
    assert curve_of(lambda rate: 1.0, noise=0.5).suggestion() is None
    assert curve_of(lambda rate: 1 + rate, noise=0.5).suggestion() is None
    assert curve_of(lambda rate: 1.0 if rate == 0 else math.nan).suggestion() is None


def test_the_range_test_suggests_a_rate_and_leaves_no_checkpoint(
    composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tune(composed("find=lr", "run_id=mine"))
    assert folder == tmp_path / "runs" / "fraud-tune" / "mine"
    assert not (tmp_path / "runs" / "fraud").exists()
    assert {path.name for path in folder.rglob("*") if path.is_file() and path.name[0] != "."} == {
        *("config.yaml", "provenance.json", "train.log", "lr.json", "lr.png")
    }
    assert is_png(folder / "lr.png")
    found = read(folder, "lr.json")
    assert 1e-5 < found["suggestion"] < 1
    assert found["configured"] == 1e-3
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) <= 150
    assert len(found["losses_untrained"]) == 150  # more than the 30 mini-batches of an epoch
    assert found["rates"][0] == 1e-6
    assert np.all(np.diff(np.log(found["rates"])) == pytest.approx(math.log(1e7) / 149))
    printed = capsys.readouterr().out
    assert f"model.lr={found['suggestion']:.1e}" in printed
    assert "the config has 1.0e-03" in printed
    assert f"--multirun model.lr={found['suggestion']:.1e}," in printed
    assert f",{10 * found['suggestion']:.1e}\n" in printed


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_untrained_weights_and_the_same_again(
    composed: Callable[..., DictConfig],
) -> None:
    first, again = (read(tune(composed("find=lr", f"run_id={name}")), "lr.json") for name in "ab")
    assert first == again
    assert first["losses"][0] == first["losses_untrained"][0]
    assert first["losses"][100] != first["losses_untrained"][100]


@pytest.mark.slow
def test_no_warm_up_or_decay_of_the_model_reaches_the_range_test(composed: Callable[..., DictConfig]) -> None:
    plain = tune(composed("find=lr", "run_id=a", "model.warmup_share=0", "model.schedule=constant"))
    other = tune(composed("find=lr", "run_id=b", "model.warmup_share=1", "model.lr=7.0"))
    assert read(plain, "lr.json")["losses"] == read(other, "lr.json")["losses"]


@pytest.mark.slow
def test_a_range_in_which_the_loss_does_not_fall_is_told_and_its_plot_kept(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="the loss fell nowhere between 1e-12 and 1e-10 in 50 steps: lower lr.low"):
        tune(composed("find=lr", "lr.low=1e-12", "lr.high=1e-10", "lr.steps=50", "run_id=flat"))
    assert is_png(tmp_path / "runs" / "fraud-tune" / "flat" / "lr.png")
    with pytest.raises(ConfigError, match=r"lr.low must be below lr.high; got 1 and 0.1"):
        tune(composed("find=lr", "lr.low=1", "lr.high=0.1"))


def test_a_module_that_keeps_no_schedule_is_refused() -> None:
    class Plain(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise AssertionError("not reached")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)

    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Scheduled(lambda step: 0.1, lambda loss: False)],
        max_steps=1,
    )
    with pytest.raises(ConfigError, match=r"find=lr needs a module whose `self.steps`(.*)Plain has none"):
        trainer.fit(Plain(), [torch.zeros(1)])


@pytest.mark.slow
@pytest.mark.parametrize("sought", ["lr", "batch_size"])
def test_weights_that_are_not_finite_are_told_at_once(
    composed: Callable[..., DictConfig], tmp_path: Path, sought: str
) -> None:
    cfg = composed(f"find={sought}", f"weights={tmp_path / 'broken.ckpt'}")
    model = instantiate(cfg.model, _partial_=True, _convert_="all")(schema=make_data(cfg).schema)
    state = {
        name: value * math.nan if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "broken.ckpt")
    with pytest.raises(DivergedError, match=r"the loss was not finite .* Look for infinities in the data"):
        tune(cfg)


# The batch size


def fitting(limit: int, tried: list[int]) -> Callable[[int], Trial | None]:
    def measure(size: int) -> Trial | None:
        tried.append(size)
        return Trial(size, 1.0, 0, size) if size <= limit else None

    return measure


@pytest.mark.parametrize(
    ("limit", "start", "most", "expected", "largest", "too_large"),
    [
        (10_000, 64, 300, [64, 128, 256, 300], 300, None),
        (10_000, 64, 64, [64], 64, None),
        (200, 64, 10_000, [64, 128, 256, 192, 224, 208], 192, 208),
        (20, 64, 10_000, [64, 32, 16, 24, 20, 22], 20, 22),
        (1, 4, 10_000, [4, 2, 1], 1, 2),
    ],
)
def test_sizes_are_doubled_and_then_the_interval_is_halved(
    limit: int, start: int, most: int, expected: list[int], largest: int, too_large: int | None
) -> None:
    tried: list[int] = []
    trials, smallest = search(fitting(limit, tried), start=start, most=most)
    assert tried == expected
    assert max(trial.batch_size for trial in trials) == largest
    assert smallest == too_large


def test_no_trial_at_all_where_not_even_one_row_fits() -> None:
    tried: list[int] = []
    assert search(fitting(0, tried), start=4, most=8) == ([], 1)
    assert tried == [4, 2, 1]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [([100, 200, 400], 4), ([100, 200, 205], 2), ([100, 104, 96], 1), ([100, 101, 106], 2), ([100, 90, 200], 4)],
)
def test_no_faster_beyond_is_the_smallest_size_that_no_larger_one_beats_by_5_percent(
    rates: list[float], expected: int
) -> None:
    trials = [Trial(2**power, rate, 0, 0) for power, rate in enumerate(rates)]
    assert no_faster_beyond(trials[::-1]) == expected


@pytest.mark.slow
def test_all_sizes_up_to_the_most_are_tried_measured_and_recorded(
    composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tune(composed("find=batch_size"))
    assert is_png(folder / "batch_size.png")
    found = read(folder, "batch_size.json")
    assert [trial["batch_size"] for trial in found["trials"]] == [64, 128, 256, 512]
    assert found["largest_that_fits"] == 512
    assert found["smallest_that_does_not_fit"] is None
    for trial in found["trials"]:
        assert trial["rows_per_second"] > 1_000
        assert 1e8 < trial["start_bytes"] <= trial["peak_bytes"] < 1e11
    assert not list(folder.rglob("*.ckpt"))
    printed = capsys.readouterr().out
    assert "largest that fits  512 (batch_size.most, and all sizes fit)" in printed
    assert f"data.batch_size={found['no_faster_beyond']}" in printed


@pytest.mark.slow
def test_the_set_of_training_rows_is_the_largest_batch(
    composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tune(composed("find=batch_size", "data.batch_size=1_500", "batch_size.most=null"))
    assert [trial["batch_size"] for trial in read(folder, "batch_size.json")["trials"]] == [1_500, 1_920]
    assert "1,920 (all training rows" in capsys.readouterr().out
    folder = tune(composed("find=batch_size", "data.batch_size=9_999", "batch_size.most=null"))
    assert [trial["batch_size"] for trial in read(folder, "batch_size.json")["trials"]] == [1_920]
    assert "data.batch_size is 9,999, but there are only 1,920 training rows" in capsys.readouterr().out


def test_on_a_cpu_a_size_whose_memory_is_foreseen_to_be_too_much_is_not_tried(
    composed: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    trials = Trials(composed("find=batch_size"), torch.device("cpu"))
    trials.last = Trial(64, 1.0, start_bytes=10**9, peak_bytes=10**13)  # no machine of ours has twice 10 TB
    for size in (128, 72):
        assert trials(size) is None
    assert [note.split(": ")[0] for note in trials.notes] == ["128 rows", "72 rows"]
    assert "128 rows: would take about 19999.0 GB" in trials.notes[0]
    assert "(batch_size.memory_share)" in capsys.readouterr().out


def test_a_foreseen_peak_grows_with_the_rows() -> None:
    assert Trial(100, 1.0, start_bytes=1_000, peak_bytes=1_500).foreseen(200) == 2_000


def test_sizes_that_cannot_be_are_told(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(ConfigError, match=r"batch_size.most must be at least data.batch_size \(64\); got 8"):
        tune(composed("find=batch_size", "batch_size.most=8"))
    cfg = composed("find=batch_size")
    OmegaConf.set_struct(cfg, False)
    del cfg.data.batch_size
    with pytest.raises(ConfigError, match=r"data.batch_size: find=batch_size needs data with this key"):
        tune(cfg)


# Memory


def test_the_peak_is_that_since_it_was_begun() -> None:
    cpu, size = torch.device("cpu"), 200_000_000
    before = memory.start_peak(cpu)
    held = np.ones(size, dtype=np.uint8)
    assert memory.peak(cpu) >= before + 0.9 * size
    del held
    again = memory.start_peak(cpu)
    assert again < before + 0.5 * size
    assert memory.peak(cpu) < before + 0.5 * size


def test_what_is_available_is_no_more_than_the_machine_has() -> None:
    free = memory.available()
    pages = subprocess.run(["getconf", "_PHYS_PAGES"], capture_output=True, text=True, check=True).stdout
    assert free is not None
    assert 0 < free < int(pages) * resource.getpagesize()


def test_a_control_group_of_version_2_and_its_parents_limit_the_memory(tmp_path: Path) -> None:
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    for folder, limit, usage, cache in ((job, "max", 500, 0), (job.parent, "1000", 700, 200)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    assert list(memory.cgroup_rooms("0::/slurm/job\n", tmp_path)) == [500]


def test_a_control_group_of_version_1_is_found_where_a_container_shows_only_its_root(tmp_path: Path) -> None:
    root = tmp_path / "memory"
    root.mkdir()
    (root / "memory.limit_in_bytes").write_text("1000")
    (root / "memory.usage_in_bytes").write_text("1200")
    (root / "memory.stat").write_text("cache 900\ntotal_inactive_file 800\n")
    memberships = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"
    assert list(memory.cgroup_rooms(memberships, tmp_path)) == [600]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_only_what_says_so_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert memory.is_out_of_memory(error) is expected


# Both


@pytest.mark.parametrize("sought", ["lr", "batch_size"])
def test_no_training_rows_are_told(composed: Callable[..., DictConfig], sought: str) -> None:
    empty = "data.splits={train: [2024-01-01, 2024-01-02], val: [2025-01-01, 2025-01-10], test: null}"
    with pytest.raises(DataError, match=r"splits.train .* holds no rows"):
        tune(composed(f"find={sought}", empty))


def test_several_processes_are_refused(composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="one process, but 2 were started: start it without torchrun or srun"):
        tune(composed("find=lr"))


def test_a_device_that_is_named_is_the_one_that_is_taken() -> None:
    assert [one_of(devices) for devices in ("auto", 4, None, OmegaConf.create([3, 5]))] == [1, 1, 1, [3]]


def test_a_folder_that_cannot_be_written_is_told(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match="cannot write the run folder"):
        tune(composed("find=lr"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], r"find: \?\?\?\n    has no value"),
        (["find=lr", "lr.steps=3"], r"lr.steps: 3\n    must be greater than or equal to 50"),
        (["find=lr", "+lr.stpes=99"], r"did you mean 'steps'\?"),
        (["find=batch_size", "batch_size.memory_share=1"], r"must be less than 1"),
        (["find=batch_size", "model.width=0"], r"model.width: 0\n    must be greater than 0"),
    ],
)
def test_what_the_config_check_refuses(composed: Callable[..., DictConfig], overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        composed(*overrides)


@pytest.mark.slow
def test_something_else_to_find_is_refused_with_the_choices(table: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "train.tune", *arguments(table, tmp_path), "find=width"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == ConfigError.exit_code
    assert "find: 'width'\n    must be 'lr' or 'batch_size'\n    from the override 'find=width'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_help_and_a_missing_experiment_need_no_torch() -> None:
    show = "import sys, runpy, atexit; atexit.register(lambda: print('torch:', 'torch' in sys.modules)); "
    run = show + "sys.argv[0] = 'tune'; runpy.run_module('train.tune', run_name='__main__')"
    asked = subprocess.run([sys.executable, "-c", run, "--help"], capture_output=True, text=True)
    assert asked.returncode == 0
    assert "find=batch_size" in asked.stdout
    assert len(asked.stdout.splitlines()) <= 30
    bare = subprocess.run([sys.executable, "-c", run, "find=lr"], capture_output=True, text=True)
    assert bare.returncode == ConfigError.exit_code
    assert "add experiment=NAME" in bare.stderr
    for done in (asked, bare):
        assert done.stdout.endswith("torch: False\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sought", "settings"), [("lr", ["lr.steps=100_000"]), ("batch_size", ["batch_size.seconds=60"])]
)
def test_ctrl_c_ends_it_with_its_exit_code(table: Path, tmp_path: Path, sought: str, settings: list[str]) -> None:
    words = [sys.executable, "-m", "train.tune", *arguments(table, tmp_path), f"find={sought}", *settings]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/provenance.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(5)  # into training
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.startswith(
        "Interrupted before there was a result. Start again with:\n  python -m train.tune experiment="
    )
    assert "Traceback" not in told


@pytest.mark.slow
def test_memory_that_is_refused_ends_the_doubling_and_not_the_search(table: Path, tmp_path: Path) -> None:
    limited = (  # to what is held after the imports and about a gigabyte, of which 1,920 rows need more
        "import resource, runpy, sys, torch, pytorch_lightning, torch._dynamo; "
        "used = int(next(l for l in open('/proc/self/status') if l.startswith('VmData')).split()[1]) * 1024; "
        "resource.setrlimit(resource.RLIMIT_DATA, (used + 900_000_000,) * 2); "
        "sys.argv[0] = 'tune'; runpy.run_module('train.tune', run_name='__main__')"
    )
    wide = ["find=batch_size", "model.width=32768", "model.num_blocks=1", "data.batches_per_call=1", "run_id=limited"]
    wide += ["data.batch_size=512"]
    words = [sys.executable, "-c", limited, *arguments(table, tmp_path), *wide, "batch_size.seconds=0.1"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "runs" / "fraud-tune" / "limited", "batch_size.json")
    assert found["smallest_that_does_not_fit"] is not None
    assert "out of memory" in found["notes"][0]
    assert found["largest_that_fits"] < found["smallest_that_does_not_fit"]
