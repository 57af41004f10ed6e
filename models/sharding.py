"""FSDP2: parameters, gradients and optimizer state sharded over ranks (https://arxiv.org/abs/2304.11277)."""

from collections.abc import Iterable

from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint as recompute
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method


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
