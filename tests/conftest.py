"""What all tests share: one thread a process, and data that are made once, in a folder that goes away."""

import os
from collections.abc import Iterator

import pytest
import torch

# The tensors of tests are small: more threads only wait for each other, the more so where other processes compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_flush_denormal(True)  # as a run does: untrained networks are full of them


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Simulated data go to a folder of this session, also in child processes; the user's own cache stays as it is."""
    before = os.environ.get("FULLCYCLE_CACHE")
    os.environ["FULLCYCLE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield os.environ["FULLCYCLE_CACHE"]
    if before is None:
        del os.environ["FULLCYCLE_CACHE"]
    else:
        os.environ["FULLCYCLE_CACHE"] = before
