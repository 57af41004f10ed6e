"""FSDP2: parameters, gradients and optimizer state sharded over ranks (https://arxiv.org/abs/2304.11277)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint as recompute
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method


def shard_networks(module: Any) -> None:
    """Shard a module's `network` and `average` where its strategy has a mesh; their `blocks` decide how finely."""
    if module.device_mesh is None:
        return
    recompute_blocks = bool(getattr(module.trainer.strategy, "activation_checkpointing", False))
    for network in (module.network, module.average):
        if network is not None:
            shard(network, network.blocks, module.device_mesh["data_parallel"], recompute_blocks=recompute_blocks)


def shard(network: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, *, recompute_blocks: bool) -> None:
    """Shard each block, then what is left of the network, over a mesh of one dimension; nothing if it is sharded.

    Args:
        network: the whole; its `forward` and `score` gather what they need.
        blocks: its large parts, gathered one at a time.
        mesh: the ranks.
        recompute_blocks: activation checkpointing: a block's activations are computed again in the backward pass.
    """
    if isinstance(network, FSDPModule):
        return
    for block in blocks:
        if recompute_blocks:
            recompute(block)
        fully_shard(block, mesh=mesh)
    # True also for the root, which torch would leave gathered: an average is changed between two forward passes.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(network, "score")


@contextmanager
def whole(network: nn.Module) -> Iterator[None]:
    """Give every rank the whole network for calls that the ranks do not make in step; nothing where it is not sharded.

    All ranks enter and leave together.
    """
    sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
