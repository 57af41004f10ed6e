"""How ranks share the work: DDP and FSDP2 as configs/trainer spells them."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.fsdp import FSDPModule

from train import ranks
from train.errors import PeerLostError
from train.sharded import ShardedWriter

PATIENCE_SECONDS = 30.0


class DataParallel(DDPStrategy):
    """DistributedDataParallel, with its options as plain values.

    A module that reduces gradients by itself, because it takes several optimizer steps in a call, follows `compression`
    and `timeout_seconds` as well; `static_graph` and `bucket_mb` have nothing to act on there.

    Args:
        timeout_seconds: longest wait in a collective before a rank gives the others up.
        compression: bf16 halves the bytes of the gradients on the wire.
        static_graph: the same parameters get gradients in every step, so that DDP can plan ahead.
        bucket_mb: gradients are sent in buckets of this size while the backward pass goes on.
    """

    def __init__(
        self,
        *,
        timeout_seconds: Annotated[float, Gt(0)],
        compression: Literal["none", "bf16"],
        static_graph: bool,
        bucket_mb: Annotated[int, Gt(0)],
    ) -> None:
        options: dict[str, Any] = {"static_graph": static_graph, "bucket_cap_mb": bucket_mb}
        if compression == "bf16":
            options["ddp_comm_hook"] = bf16_compress_hook
        super().__init__(timeout=timedelta(seconds=timeout_seconds), gradient_as_bucket_view=True, **options)
        self.gradient_dtype = torch.bfloat16 if compression == "bf16" else None


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all ranks, for a model that outgrows one device; the module shards itself in `configure_model`.

    Checkpoints to go on from are sharded and written in the background (`train.sharded`); the best is one whole file,
    as every other strategy's is.

    Args:
        timeout_seconds: longest wait in a collective before a rank gives the others up.
        activation_checkpointing: compute blocks again in the backward pass instead of keeping their activations.
    """

    def __init__(self, *, timeout_seconds: Annotated[float, Gt(0)], activation_checkpointing: bool) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timedelta(seconds=timeout_seconds)
        )
        self.activation_checkpointing = activation_checkpointing
        self._writer = ShardedWriter()

    def setup_environment(self) -> None:
        """Spread the shards over every rank; Lightning's own choice is one per node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @contextlib.contextmanager
    def sharding_checkpoints(self) -> Iterator[None]:
        """Within it, `trainer.save_checkpoint` begins to write shards and returns."""
        self._save_distributed_checkpoint = True
        try:
            yield
        finally:
            self._save_distributed_checkpoint = False

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save one whole file, or begin to save shards."""
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        state = {"state_dict": checkpoint.pop("state_dict")}
        for number, optimizer_state in enumerate(checkpoint.pop("optimizer_states", [])):
            state[f"optimizer_{number}"] = optimizer_state
        self._writer.save(state, checkpoint, Path(self.broadcast(filepath)))

    def finish_checkpoint(self) -> None:
        """Wait for the shards that are being written."""
        self._writer.wait()


def gather(model: nn.Module) -> None:
    """Give every rank whole parameters, for what rank 0 makes of the model alone; nothing where none are sharded."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()


def calm(trainer: Trainer) -> None:
    """Take two things from Lightning that end a run badly: its signal handlers and its observer of child processes.

    The handlers talk to other ranks inside a signal handler, which hangs; signals are `train.stopping`'s. The observer
    kills rank 0 within seconds of a child's end, before it has said why or saved what it has.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        trainer.strategy._launcher = PatientLauncher(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )
    ranks.timeout = getattr(trainer.strategy, "_timeout", None)


class PatientLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks; when one has failed, rank 0 has `PATIENCE_SECONDS` to end by itself."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes, unless they run already, and call `function`."""
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=self._observe, name="child processes", daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _observe(self) -> None:
        while not any(process.poll() for process in self.procs):
            if all(process.poll() == 0 for process in self.procs):
                return
            time.sleep(1.0)
        time.sleep(PATIENCE_SECONDS)
        self.kill(signal.SIGKILL)
        print(f"{ranks.name()} ends: another process of the run failed, see above", file=sys.stderr, flush=True)
        os._exit(PeerLostError.exit_code)
