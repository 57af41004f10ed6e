"""One process with a batch of 2 B and two with B train alike, and any number of ranks measures alike."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

RECORDED = Path(__file__).with_name("recorded.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
NETWORKS = {
    "mlp": ["model=mlp", "model.width=16"],
    "tabm": ["model=tabm", "model.width=16", "model.num_members=4", "model.embedding_size=8"],
    "ft_transformer": ["model=ft_transformer", "model.width=16", "model.num_heads=2"],
}


class Runs:
    """Runs of the small experiment on numbers of processes, each made once."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.folder, self.overrides = folder, overrides

    def __call__(self, name: str, num_processes: int, *overrides: str, record: str | None = None) -> list[dict]:
        """Return what each rank recorded."""
        kept = self.folder / "records" / (record or name)
        if not kept.exists():
            command = [*TORCHRUN, f"--nproc-per-node={num_processes}", str(RECORDED), *self.overrides, *overrides]
            environment = {**os.environ, "RECORD": str(kept), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [*command, f"run_id={name}", f"output_dir={self.folder / 'runs'}"],
                env=environment,
                cwd=self.folder,
                capture_output=True,
                text=True,
                timeout=180,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        return [torch.load(kept / f"rank{rank}.pt") for rank in range(num_processes)]

    def metrics(self, name: str) -> dict[str, float]:
        return json.loads((self.folder / "runs" / "fraud" / name / "result.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, small_run: list[str]) -> Runs:
    return Runs(tmp_path_factory.mktemp("order"), [*small_run, "trainer.max_epochs=3"])


def assert_alike(one: list[dict], other: list[dict]) -> None:
    """The same losses at the same steps, on all ranks, and each row once in an epoch."""
    expected = one[0]["losses"]
    for record in (*one, *other):
        assert record["losses"].keys() == expected.keys()
        assert max(abs(loss - expected[step]) for step, loss in record["losses"].items()) < 1e-6
    for epoch in one[0]["rows"]:
        rows = [sorted(row for record in records for row in record["rows"][epoch]) for records in (one, other)]
        assert rows[0] == rows[1]
        assert len(set(rows[0])) == len(rows[0]) == 1_280


def assert_ranks_equal(records: list[dict]) -> None:
    for record in records[1:]:
        for name, value in record["weights"].items():
            assert torch.equal(value, records[0]["weights"][name]), name


@pytest.mark.parametrize("network", NETWORKS)
def test_two_processes_are_one_of_twice_the_batch(runs: Runs, network: str) -> None:
    one, two = (runs(f"{network}{count}", count, *NETWORKS[network]) for count in (1, 2))
    assert_alike(one, two)
    assert_ranks_equal(two)


@pytest.mark.parametrize(("network", "recompute"), [("mlp", "false"), ("tabm", "false"), ("ft_transformer", "true")])
def test_sharded_ranks_train_as_ranks_with_copies_do(runs: Runs, network: str, recompute: str) -> None:
    copies = runs(f"{network}2", 2, *NETWORKS[network])
    strategy = ["trainer=fsdp", "trainer.accelerator=cpu", f"trainer.strategy.activation_checkpointing={recompute}"]
    sharded = runs(f"{network}sharded", 2, *NETWORKS[network], *strategy, "trainer.max_epochs=3")
    expected, found = copies[0]["losses"], sharded[0]["losses"]
    assert found.keys() == expected.keys()
    assert max(abs(loss - expected[step]) for step, loss in found.items()) < 1e-4
    assert_ranks_equal(sharded)


@pytest.mark.parametrize("batch_size", [64, 639])  # 639: the last mini-batch has two rows for three ranks
def test_one_two_and_three_ranks_measure_alike_where_nothing_divides(runs: Runs, batch_size: int) -> None:
    other = [] if batch_size == 64 else [f"data.batch_size={batch_size}"]  # 64 is that of all runs here
    names = {count: f"mlp{count}of{batch_size}" if other else f"mlp{count}" for count in (1, 2, 3)}
    records = [runs(name, count, *NETWORKS["mlp"], *other) for count, name in names.items()]
    for more in records[1:]:
        assert_alike(records[0], more)
        assert_ranks_equal(more)
    expected = runs.metrics(names[1])
    for name in (names[2], names[3]):
        assert runs.metrics(name) == pytest.approx(expected, abs=1e-6)


def test_another_number_of_ranks_goes_on_in_the_same_order(runs: Runs) -> None:
    overrides = [*NETWORKS["mlp"], "model.schedule=constant", "model.warmup_share=0"]
    expected = runs("whole", 1, *overrides)[0]["losses"]
    runs("moved", 1, *overrides, "trainer.max_epochs=1", record="first")
    rest = runs("moved", 2, *overrides, record="second")
    assert set(rest[0]["losses"]) == set(range(20, 60))
    for record in rest:
        assert max(abs(loss - expected[step]) for step, loss in record["losses"].items()) < 1e-6
