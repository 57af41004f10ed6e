"""What one rank sees of what all ranks must share: config, code, data, folder and time.

A look, here and in train.hardware, is one check's part on one rank. It returns a Sight or raises Wrong. It may talk to
the other ranks, but then in the same order on all of them, whatever it finds: a rank that left early would make the
others wait.
"""

import contextlib
import hashlib
import importlib.util
import platform
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import nn

from train.errors import DataError

MOST_SKEW_SECONDS = 5.0
APPEARS_WITHIN_SECONDS = 3.0  # a file on a network disk, to the other hosts

SHARE = "Set output_dir to a folder that every host mounts at this path and that this user can write."
SAME_CODE = "Bring all hosts to the same commit and the same packages, or start from a folder that they share."
SAME_CONFIG = "Give every process the same command line, working folder and environment."
SAME_DATA = "Give every host the same copy of the data."
SET_CLOCKS = "Run NTP (chrony) on all hosts: file times, logs and time-outs go by the clock."


class Wrong(Exception):
    """What a look found amiss on this rank, and what the user can do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.found, self.advice = found, advice


@dataclass(frozen=True)
class Sight:
    """What a look saw.

    Attributes:
        figure: a few words for a table.
        alike: what must be the same on all ranks, by name.
        found: what is wrong on this rank alone; empty where nothing is.
        advice: what to do if something is wrong or not alike.
        skipped: why there was nothing to look at.
    """

    figure: str = ""
    alike: Mapping[str, str] = field(default_factory=dict)
    found: str = ""
    advice: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Scene:
    """What the looks look at.

    Attributes:
        cfg: the composed config.
        folder: where the run writes; need not exist.
        fingerprint: gives the data's; may raise a UserError.
        model: gives the model on the CPU; may raise a UserError.
        device: where this rank trains; the collectives of training go from there.
        words: a gloo group for Python objects; None where there is one process.
    """

    cfg: DictConfig
    folder: Path
    fingerprint: Callable[[], str]
    model: Callable[[], nn.Module]
    device: torch.device
    words: dist.ProcessGroup | None

    @property
    def rank(self) -> int:
        """This process's number."""
        return 0 if self.words is None else dist.get_rank()

    @property
    def num_ranks(self) -> int:
        """How many processes there are."""
        return 1 if self.words is None else dist.get_world_size()

    def gather(self, mine: Any) -> list[Any]:
        """Return every rank's object, in the order of ranks. All ranks must call it."""
        if self.words is None:
            return [mine]
        everyone: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(everyone, mine, group=self.words)
        return everyone

    def wait_for_all(self) -> None:
        """Go on when all ranks are here."""
        if self.words is not None:
            dist.barrier(group=self.words)


def look_at_folder(scene: Scene) -> Sight:
    """Rank 0 writes a file of a random name in the run folder; the others must see it and write beside it."""
    token = scene.gather(secrets.token_hex(8))[0]
    file = scene.folder / f".preflight-{token}"
    made = [path for path in (scene.folder, *scene.folder.parents) if scene.rank == 0 and not path.exists()]
    failure = _written(file, token) if scene.rank == 0 else ""
    failure_of_first = scene.gather(failure)[0]
    if scene.rank and not failure_of_first:
        failure = _not_shared(file, token, scene.rank)
    scene.wait_for_all()  # all have read
    if scene.rank == 0:
        with contextlib.suppress(OSError):
            file.unlink()
            for path in made:
                path.rmdir()
    if failure:
        raise Wrong(failure, SHARE)
    return Sight(str(scene.folder))


def _not_shared(file: Path, token: str, rank: int) -> str:
    """Read what rank 0 wrote and write beside it; return what failed."""
    if not _appears(file, token):
        return f"does not see the file that rank 0 wrote in {file.parent}"
    own = file.with_name(f"{file.name}-{rank}")
    failure = _written(own, token)
    with contextlib.suppress(OSError):
        own.unlink()
    return failure


def _written(file: Path, text: str) -> str:
    """Write a file; return why not, if so."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        return f"cannot write in {file.parent}: {error}"
    return ""


def _appears(file: Path, text: str) -> bool:
    until = time.monotonic() + APPEARS_WITHIN_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if file.read_text() == text:
                return True
        time.sleep(0.05)
    return False


def look_at_code(scene: Scene) -> Sight:
    """The git commit, a digest of each file of the packages that the config names, and the versions below them."""
    names = {"train", *(str(scene.cfg[part]._target_).partition(".")[0] for part in ("data", "model"))}
    alike = {"git commit": _git_commit(), "Python": platform.python_version(), "torch": str(torch.__version__)}
    for name in sorted(names):
        spec = importlib.util.find_spec(name)
        for home in (spec and spec.submodule_search_locations) or ():
            for file in sorted(Path(home).rglob("*.py")):
                alike[f"{name}/{file.relative_to(home)}"] = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    commit = alike["git commit"]
    return Sight(f"commit {commit[:9]}, {len(alike) - 3} files", alike, advice=SAME_CODE)


def _git_commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return "unknown"


def look_at_config(scene: Scene) -> Sight:
    """Every key and its value."""
    alike = _flat(OmegaConf.to_container(scene.cfg, resolve=True), "")
    digest = hashlib.sha256(repr(sorted(alike.items())).encode()).hexdigest()[:12]
    return Sight(f"valid; {len(alike)} keys, digest {digest}", alike, advice=SAME_CONFIG)


def _flat(node: Any, key: str) -> dict[str, str]:
    if not isinstance(node, dict) or not node:
        return {key: str(node)}
    found: dict[str, str] = {}
    for name, value in node.items():
        found.update(_flat(value, f"{key}.{name}" if key else str(name)))
    return found


def look_at_data(scene: Scene) -> Sight:
    """The data's fingerprint."""
    fingerprint = scene.fingerprint()
    return Sight(f"fingerprint {fingerprint[:12]}", {"the fingerprint of the data": fingerprint}, advice=SAME_DATA)


def look_at_model(scene: Scene) -> Sight:
    """The number of the model's parameters; where there are no data, they are what is wrong, and no model follows."""
    try:
        number = sum(parameter.numel() for parameter in scene.model().parameters())
    except DataError:
        return Sight(skipped="not known without the data")
    return Sight(f"{number:,} parameters", {"the number of parameters": str(number)}, advice=SAME_DATA)


def look_at_clock(scene: Scene) -> Sight:
    """How far this host's clock is from rank 0's."""
    scene.wait_for_all()
    times = scene.gather(time.time())
    skew = times[scene.rank] - times[0]
    if abs(skew) > MOST_SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        raise Wrong(f"its clock is {abs(skew):.1f} s {side} rank 0's; at most {MOST_SKEW_SECONDS:g} s", SET_CLOCKS)
    return Sight(f"{max(times) - min(times):.2f} s apart")
