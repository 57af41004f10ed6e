"""Where a process stands among the processes of its run: rank, host, the run's id, and what all of them agree on."""

import contextlib
import functools
import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

RUN_ID_VARIABLE = "FULLCYCLE_RUN_ID"
JOINING_SECONDS = 300.0
_RUN_ID_KEY = "fullcycle/run_id"
_JOIN = "fullcycle/join"
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def rank() -> int:
    """Return this process's rank, as its launcher says: known before there is a process group, and without torch."""
    names = _RANKS if is_under_srun() else [name for name in _RANKS if name != "SLURM_PROCID"]
    return int(next((os.environ[name] for name in names if os.environ.get(name)), "0"))


def is_rank_zero() -> bool:
    """Tell whether this process is the one that writes."""
    return rank() == 0


def name() -> str:
    """Return "rank 1 on host7", for messages."""
    return f"rank {rank()} on {platform.node()}"


def is_under_torchrun() -> bool:
    """Tell whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_under_srun() -> bool:
    """Tell whether this process is one task of a SLURM step; what a shell in an interactive job starts is none."""
    is_task = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_STEP_ID", "batch").isdigit()
    return is_task and not _is_interactive()


def _is_interactive() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in {"bash", "sh", "zsh", "interactive"}  # srun --pty bash, salloc


def processes() -> dict[str, int]:
    """Return the `devices` and `num_nodes` that the launcher has started; empty where Lightning launches them itself.

    Under torchrun they change with the members of the run, so no config can hold them.
    """
    if is_under_torchrun():
        per_node, total = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return {"devices": per_node, "num_nodes": total // per_node}
    if is_under_srun():
        num_nodes = int(os.environ["SLURM_NNODES"])
        return {"devices": int(os.environ["SLURM_NTASKS"]) // num_nodes, "num_nodes": num_nodes}
    return {}


def num_processes() -> int:
    """Return how many processes the launcher has started for this run; 1 where Lightning launches them itself."""
    found = processes()
    return found["devices"] * found["num_nodes"] if found else 1


def new_run_id() -> str:
    """Return an id that sorts by time: 20260131-235959-1a2b."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


@contextlib.contextmanager
def run_id_for_all_ranks(run_id: str | int | None) -> Iterator[str]:
    """Give the run's id: the one asked for, or handed on by the launcher, or the SLURM job's, or a new one.

    While the context is open the id is in the environment, where processes that are launched for other ranks find it.
    """
    handed_on = os.environ.get(RUN_ID_VARIABLE)
    asked = None if run_id is None else str(run_id)
    chosen = asked or handed_on or _slurm_id() or _torchrun_id() or new_run_id()
    os.environ[RUN_ID_VARIABLE] = chosen
    try:
        yield chosen
    finally:
        if handed_on is None:
            os.environ.pop(RUN_ID_VARIABLE, None)
        else:
            os.environ[RUN_ID_VARIABLE] = handed_on


def _slurm_id() -> str | None:
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    if job is None or _is_interactive():  # whose runs are many
        return None
    own, number = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job, multirun_number()
    return own if number is None else f"{own}-{number}"


def multirun_number() -> int | None:
    """Return the number of this job of a `--multirun`; None outside one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return int(HydraConfig.get().job.num)
    return None


def _torchrun_id() -> str | None:
    """Return the id that the first rank to ask has put into the launcher's store, which outlives restarted workers."""
    if not is_under_torchrun():
        return None
    named = os.environ["TORCHELASTIC_RUN_ID"]
    if named != "none" and not _is_uuid(named):
        return named
    store = _launcher_store()
    return str(store.compare_set(_RUN_ID_KEY, "", new_run_id()).decode())


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and text.count("-") == 4  # what --standalone makes up


def join(strategy: Any) -> None:
    """Make the process group of the processes that torchrun has started; elsewhere Lightning's own way is sound.

    torchrun's store outlives its workers, and a process group made on it as it is may take the addresses of the
    workers before the restart (pytorch#135712). Here the group's keys have a prefix of their own, on which these
    processes agree.

    Args:
        strategy: Lightning's, whose backend, device and timeout count.
    """
    if not is_under_torchrun() or os.environ["WORLD_SIZE"] == "1":
        return
    import torch.distributed as dist

    if dist.is_initialized():  # by an earlier run of these processes
        return
    dist.init_process_group(
        strategy._get_process_group_backend(),
        store=new_store(),
        rank=rank(),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=strategy._timeout,
        device_id=strategy.root_device if strategy.root_device.type == "cuda" else None,
    )


@functools.cache
def _launcher_store() -> Any:
    """Return the store of the processes of torchrun, which serves it, or else rank 0 does, as long as it lives."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not is_served and os.environ["RANK"] == "0",
        timeout=timedelta(seconds=JOINING_SECONDS),
        multi_tenant=True,
        wait_for_workers=False,
    )


def new_store() -> Any:
    """Return a store that the processes alive now, and no earlier ones, have to themselves; torchrun's only."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    return PrefixStore(_agreed_prefix(_launcher_store()), _launcher_store())


def _agreed_prefix(store: Any) -> str:
    """Return a name that only the processes alive now can know: rank 0 answers each one's fresh question with it.

    Whatever an earlier rank has left in the store answers no question of now.
    """
    if rank() != 0:
        question = secrets.token_hex(8)
        store.set(f"{_JOIN}/question/{rank()}", question)
        prefix = store.get(f"{_JOIN}/answer/{question}").decode()
        store.set(f"{prefix}/joined/{rank()}", "")
        return str(prefix)
    prefix, others = f"{_JOIN}/{secrets.token_hex(8)}", range(1, int(os.environ["WORLD_SIZE"]))
    deadline = time.monotonic() + JOINING_SECONDS
    while not store.check([f"{prefix}/joined/{other}" for other in others]):
        for other in others:
            if store.check([f"{_JOIN}/question/{other}"]):
                store.set(f"{_JOIN}/answer/{store.get(f'{_JOIN}/question/{other}').decode()}", prefix)
        if time.monotonic() > deadline:
            raise RuntimeError(f"wait timeout: not all of {len(others) + 1} ranks came in {JOINING_SECONDS} s")
        time.sleep(0.02)
    return prefix


def leave() -> None:
    """Take this process out of its groups; gloo's threads, were they still there, could abort it at its exit."""
    global _control
    dist = sys.modules.get("torch.distributed")  # what was not imported has no groups
    if dist is not None and dist.is_available() and dist.is_initialized():
        _control = None
        dist.destroy_process_group()


timeout: timedelta | None = None  # of the groups beside Lightning's; the strategy's
_control: Any = None


def agree(*values: int) -> list[int]:
    """Return the largest of each value over all ranks; every rank must call it at the same point."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=control_group())
    return [int(value) for value in tensor.tolist()]


def control_group() -> Any:
    """Return a group for small messages between CPUs: the default one on gloo, one beside NCCL's elsewhere.

    A message on the GPU would wait for all work that is queued there.
    """
    import torch.distributed as dist

    global _control
    if dist.get_backend() == "gloo":
        return dist.group.WORLD
    if _control is None:
        _control = dist.new_group(backend="gloo", timeout=timeout)
    return _control
