"""Randomness that falls alike on any number of ranks: dropout, and numbers of rows that a choice starts from."""

import torch
from torch import Tensor, nn


class RowDropout(nn.Module):
    """Dropout of [B, ...] whose mask for a row depends on the row's place in the global batch, not on ranks.

    Each rank draws the mask of the whole global batch from the same generator state and keeps its own rows, so that
    one process with a batch of 2 B and two with B each train alike. The cost does not grow with the ranks: it stays
    that of one process. `models.optim.Steps` sets `rows` and seeds the generator.

    Attributes:
        rows: this rank, the number of ranks and the rows of the global batch; None where a process is alone.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.rows: tuple[int, int, int] | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Drop in training, with the rest scaled up."""
        if not self.training or self.probability == 0:
            return values
        rank, world_size, num_rows = self.rows or (0, 1, len(values))
        kept = torch.empty(num_rows, *values.shape[1:], dtype=values.dtype, device=values.device)
        kept.bernoulli_(1 - self.probability).div_(1 - self.probability)
        return values * kept[rank::world_size]

    def extra_repr(self) -> str:
        """Show the probability."""
        return f"{self.probability}"


class RowSeeds(nn.Module):
    """A random number for each row of a batch, by the row's place in the global batch, as `RowDropout` has its masks.

    Attributes:
        rows: as `RowDropout` has them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: tuple[int, int, int] | None = None

    def forward(self, num: int, device: torch.device) -> Tensor:
        """Draw numbers of 31 bits, int64 [num]."""
        rank, world_size, num_rows = self.rows or (0, 1, num)
        return torch.randint(2**31, (num_rows,), device=device)[rank::world_size]
