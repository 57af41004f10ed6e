"""Where a network puts pictures before it decides, for TensorBoard's projector.

Shapes: B pictures, H x W pixels, D numbers before the last linear layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

MOST = 1_000  # pictures: the projector moves each of them in the browser
SIDE = 48  # pixels of a thumbnail at most


@contextmanager
def before_decision(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the last linear layer is given in each call within, [B, D]; nothing where there is no such layer."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    kept: list[Tensor] = []
    if not layers:
        yield kept
        return
    hook = layers[-1].register_forward_pre_hook(lambda _, given: kept.append(given[0].detach()))
    try:
        yield kept
    finally:
        hook.remove()


def some(kept: Sequence[Tensor], row: Tensor) -> dict[str, Tensor]:
    """The columns `embedding` and `row` of the first rows of a split, of one batch; none where nothing was collected.

    Args:
        kept: of the batch's pictures, and perhaps of their mirror images behind them.
        row: the batch's row numbers, [B].
    """
    if not kept or kept[0].ndim != 2 or len(kept[0]) != len(row):
        return {}
    is_some = row < MOST
    return {"embedding": kept[0][is_some].float(), "row": row[is_some]}


def write(found: dict[str, NDArray[Any]], labels: Sequence[Sequence[str]], images: Any, writer: Any, step: int) -> None:
    """Write the pictures' places, labels and thumbnails.

    Args:
        found: columns of `some`, of all batches.
        labels: the class of each and what was predicted.
        images: uint8 [N, H, W, 3], of which the rows are numbers.
        writer: TensorBoard's.
        step: that the network has been trained.
    """
    pixels = torch.stack([images[int(row)] for row in found["row"]]).permute(0, 3, 1, 2).float() / 255
    larger = max(pixels.shape[2:]) / SIDE
    if larger > 1:
        size = [max(1, round(side / larger)) for side in pixels.shape[2:]]
        pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    height, width = pixels.shape[2:]
    side = max(height, width)  # the projector's are square
    pixels = functional.pad(pixels, (0, side - width, 0, side - height), value=1.0)
    options = {"metadata_header": ["class", "predicted"], "label_img": pixels, "global_step": step, "tag": "test"}
    writer.add_embedding(found["embedding"], metadata=[list(own) for own in labels], **options)
