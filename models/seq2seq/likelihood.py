"""The log-probabilities that a loss over a vocabulary needs, with a backward pass that writes one matrix."""

from typing import Any

import torch
from torch import Tensor


class _Said(torch.autograd.Function):
    """See `said_and_even`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.log_softmax(dim=1)
        ctx.save_for_backward(scores, wanted)
        return scores.gather(1, wanted.unsqueeze(1)).squeeze(1), scores.mean(dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (said, even), (scores, wanted) = grads, ctx.saved_tensors
        made = scores.exp().mul_(-(said + even).unsqueeze(1)).add_((even / scores.shape[1]).unsqueeze(1))
        return made.scatter_add_(1, wanted.unsqueeze(1), said.unsqueeze(1)), None


def said_and_even(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the wanted tokens, and the mean one of all tokens, which label smoothing raises: [N] each.

    Autograd's own way through softmax, gather and mean reads and writes the matrix three times as often.

    Args:
        logits: float32 [N, V].
        wanted: token ids [N].
    """
    found: tuple[Tensor, Tensor] = _Said.apply(logits, wanted)
    return found
