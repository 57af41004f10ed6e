"""What evaluation steps leave behind, from all ranks."""

from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from models.optim import is_distributed


def gathered(outputs: list[dict[str, Tensor]]) -> dict[str, NDArray[Any]]:
    """Join the columns that the steps of all ranks have kept, and empty the list; ranks follow one another."""
    columns = {name: torch.cat([out[name] for out in outputs]).cpu().numpy() for name in outputs[0]}
    outputs.clear()
    if not is_distributed():
        return columns
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, columns)
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}
