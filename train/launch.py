"""Start an experiment in the way of the place that one is in: print the right line, or run it.

python -m train.launch local experiment=NAME                                # every GPU of this machine, else its CPU
python -m train.launch local --nproc-per-node=2 experiment=NAME
python -m train.launch torchrun --nproc-per-node=8 --max-restarts=3 experiment=NAME
python -m train.launch torchrun --nodes=2 --nproc-per-node=8 --rdzv-endpoint=HOST:PORT run_id=ID experiment=NAME
python -m train.launch slurm --nodes=2 --nproc-per-node=8 --time=8:00:00 experiment=NAME

Each with --dry-run prints the line and stops. What is no flag of ours goes on to `python -m train`.
"""

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from train import errors, ranks
from train.config import arguments
from train.config.check import check
from train.config.finding import seen_from_here
from train.errors import ConfigError

_SCRIPTS = (
    Path(__file__).parents[1] / "scripts" / "slurm" / "train.sbatch",  # a checkout
    Path(__file__).with_name("train.sbatch"),  # an installed wheel
)


@dataclass(frozen=True)
class Line:
    """A command line, and what it needs in the environment."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The line as one types it."""
        return " ".join([*(f"{k}={shlex.quote(v)}" for k, v in self.environment.items()), shlex.join(self.words)])

    def program(self) -> str:
        """Return the path of its command. Raises ConfigError where that is not installed."""
        beside = Path(sys.executable).with_name(self.words[0])  # this environment's python and torchrun
        found = str(beside) if beside.exists() else shutil.which(self.words[0])
        if found is None:
            raise ConfigError(
                f"{self.words[0]}: no such command on this machine. Launch where it is installed, "
                "or take --dry-run's line there."
            )
        return found

    def run(self) -> NoReturn:
        """Become that command; the `python` of a job is this one."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        program = self.program()
        os.execve(program, [program, *self.words[1:]], {**os.environ, **self.environment, "PATH": path})


def local(options: argparse.Namespace, overrides: list[str], cfg: DictConfig) -> Line:
    """Return the line for this machine: Lightning starts a process for each device."""
    count = options.nproc_per_node
    devices = [] if count is None else [*_ddp(count > 1), f"trainer.devices={count}"]
    return Line(["python", "-m", "train", *overrides, *devices])


def torchrun(options: argparse.Namespace, overrides: list[str], cfg: DictConfig) -> Line:
    """Return torchrun's line, the same on every node. One id for all nodes and restarts, so that they find the run.

    Raises:
        ConfigError: several nodes were asked for without saying where they meet, or what their run is called.
    """
    several = options.nodes != "1"
    given = _value_of("run_id", overrides)
    run_id = given or ranks.new_run_id()
    if several and options.rdzv_endpoint is None:
        raise ConfigError("--rdzv-endpoint is missing: HOST:PORT of the node where all nodes meet, the same on each")
    if several and given is None and not options.dry_run:
        raise ConfigError(f"run_id is missing: each node must be given the same, for example run_id={run_id}")
    per_node = options.nproc_per_node or ("gpu" if Path("/dev/nvidia0").exists() else 1)
    words = ["torchrun", f"--nnodes={options.nodes}", f"--nproc-per-node={per_node}"]
    if options.rdzv_endpoint is None:
        words.append("--standalone")
    else:
        words += ["--rdzv-backend=c10d", f"--rdzv-endpoint={options.rdzv_endpoint}", f"--rdzv-id={run_id}"]
    words += [f"--max-restarts={options.max_restarts}", *options.option, "-m", "train", *overrides]
    words += [*_ddp(several or per_node != 1), *([] if given else [f"run_id={run_id}"])]
    return Line(words, _torchrun_environment(options.nodes, per_node))


def _torchrun_environment(nodes: str, per_node: int | str) -> dict[str, str]:
    environment = {}
    if isinstance(per_node, int) and per_node > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // per_node))
    if ":" in nodes:  # without it a node that comes back fails in its first collective
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return environment


def slurm(options: argparse.Namespace, overrides: list[str], cfg: DictConfig) -> Line:
    """Return sbatch's line; what is not given is as the script says, and the run is called as the job is."""
    given = {
        "nodes": options.nodes,
        "ntasks-per-node": options.nproc_per_node,
        "gpus-per-node": None if cfg.trainer.get("accelerator") == "cpu" else options.nproc_per_node,
        "cpus-per-task": options.cpus_per_task,
        "time": options.time,
        "partition": options.partition,
    }
    words = ["sbatch", *(f"--{name}={value}" for name, value in given.items() if value is not None), *options.option]
    script = next(path for path in _SCRIPTS if path.exists())
    several = options.nodes not in (None, 1) or options.nproc_per_node not in (None, 1)
    words += [str(seen_from_here(script)), *overrides, *_ddp(several)]
    return Line(words, {"CONTAINER": options.container} if options.container else {})


def _ddp(several: bool) -> list[str]:
    """What several processes need and neither the command line nor the experiment says."""
    chosen = HydraConfig.get().runtime.choices["trainer"]
    return ["trainer=ddp"] if several and chosen == "auto" else []


def _value_of(key: str, overrides: list[str]) -> str | None:
    found = [word.partition("=")[2] for word in overrides if word.partition("=")[0].lstrip("+") == key]
    return found[-1] if found else None


_PLACES: dict[str, Callable[[argparse.Namespace, list[str], DictConfig], Line]] = {
    "local": local,
    "torchrun": torchrun,
    "slurm": slurm,
}


def main() -> None:
    """Read our flags, let Hydra compose the rest, so that a mistake is told here and not after hours in a queue."""
    options, rest = _parser().parse_known_args()
    unknown = get_args_parser().parse_known_intermixed_args(rest)[1]
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such flag; see python -m train.launch {options.place} --help")
    if {"--multirun", "-m"} & set(rest):
        raise ConfigError("--multirun: several runs are not launched at once; launch each by itself")
    sys.argv[1:] = arguments.in_order(rest)

    @hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
    def launch(cfg: DictConfig) -> None:
        with errors.job():
            if cfg.get("data") is None and cfg.get("model") is None:
                check(cfg)  # ends here: there is no experiment
            line = _PLACES[options.place](options, sys.argv[1:], cfg)
            if options.dry_run:
                print(line)
                return
            line.program()
            if options.place == "slurm":
                check(cfg)  # imports torch; elsewhere training starts at once and does it
            print(line, file=sys.stderr, flush=True)
            line.run()

    launch()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    places = parser.add_subparsers(dest="place", required=True, metavar="local|torchrun|slurm")
    for name, build in _PLACES.items():
        summary = (build.__doc__ or "").partition("\n")[0]
        place = places.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        place.add_argument("--dry-run", action="store_true", help="print the line and stop")
        place.add_argument(
            "--nproc-per-node", type=_count, metavar="N", help="processes of each node, one for each GPU"
        )
        _ADD.get(name, lambda _: None)(place)
    return parser


def _add_torchrun(place: argparse.ArgumentParser) -> None:
    place.add_argument("--nodes", type=_nodes, default="1", metavar="N|MIN:MAX", help="nodes, or how few and how many")
    place.add_argument(
        "--rdzv-endpoint", metavar="HOST:PORT", help="where the nodes meet: one of them, and a free port"
    )
    place.add_argument("--max-restarts", type=int, default=3, metavar="N", help="restarts after a failure (3)")
    place.add_argument("--option", action="append", default=[], help="one more of torchrun's: --option=--rdzv-conf=...")


def _add_slurm(place: argparse.ArgumentParser) -> None:
    place.add_argument("--nodes", type=_count, metavar="N", help="nodes")
    place.add_argument("--cpus-per-task", type=_count, metavar="N", help="CPUs of each process")
    place.add_argument("--time", metavar="[D-]HH:MM:SS", help="time limit")
    place.add_argument("--partition", metavar="NAME", help="partition")
    place.add_argument("--container", metavar="COMMAND", help="what runs each task: 'apptainer exec --nv image.sif'")
    place.add_argument("--option", action="append", default=[], help="one more of sbatch's: --option=--account=mine")


_ADD = {"torchrun": _add_torchrun, "slurm": _add_slurm}


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up; got {text!r}")
    return int(text)


def _nodes(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*(:[1-9][0-9]*)?", text):
        raise argparse.ArgumentTypeError(f"must be N or MIN:MAX, such as 2 or 1:4; got {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(errors.guard(main))
