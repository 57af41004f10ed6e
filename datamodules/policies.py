"""RandAugment (arXiv 1909.13719) and TrivialAugment (arXiv 2103.10158): each picture its own operation and strength.

The operations, their order and their strengths are those of `torchvision.transforms.v2`, a whole batch at once: the
pictures that an operation falls on go through it together, each with its own strength.

Shapes: B pictures, H rows, W columns of pixels.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Policy = Literal["none", "trivial", "rand"]

STRENGTHS = 31  # of each operation, the first the weakest
DRAWS = 3  # uniform numbers that one operation takes: which one, its strength, its sign
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, BRIGHTNESS = range(1, 7)
SIGNED = torch.tensor([0] + 9 * [1] + 4 * [0]) > 0
CALL = torch.tensor([0, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9])  # which of `CALLS` an operation is part of


def changed(
    images: Tensor, draws: Tensor, fill: Tensor, *, policy: Policy, num_ops: int = 1, magnitude: int = 0
) -> Tensor:
    """Change uint8 pictures [B, H, W, 3] by uniform random numbers [B, DRAWS * num_ops].

    Args:
        images: the pictures.
        draws: a picture's own numbers, so that it is changed alike in any batch.
        fill: the colour, uint8 [3], of what comes in at the edges.
        policy: trivial: one operation, its strength drawn from a wide range. rand: `num_ops` of strength `magnitude`.
        num_ops: operations in a row.
        magnitude: of rand: from 0 to `STRENGTHS` - 1.
    """
    table = torch.from_numpy(strengths(*images.shape[1:3], is_wide=policy == "trivial")).to(images.device)
    for which, level, sign in draws.view(len(images), num_ops, DRAWS).permute(1, 2, 0):
        kind = (which * len(OPERATIONS)).long()
        bins = (level * STRENGTHS).long() if policy == "trivial" else torch.full_like(kind, magnitude)
        strength = table[kind, bins]
        is_negative = SIGNED.to(kind.device)[kind] & (sign < 0.5)
        images = operated(images, kind, torch.where(is_negative, -strength, strength), fill)
    return images


def strengths(height: int, width: int, *, is_wide: bool) -> NDArray[np.float64]:
    """What each strength of each operation means, [operations, STRENGTHS]; nothing for those that have none."""
    rise = np.linspace(0, 1, STRENGTHS)
    found = np.zeros((len(OPERATIONS), STRENGTHS))
    found[SHEAR_X : SHEAR_Y + 1] = rise * (0.99 if is_wide else 0.3)
    # Whole pixels; the wide 32 of torchvision would leave nothing of a smaller picture at most of the strengths.
    for operation, side in ((TRANSLATE_X, width), (TRANSLATE_Y, height)):
        found[operation] = np.trunc(np.round(rise * (min(32, side) if is_wide else 150 / 331 * side), 6))
    found[ROTATE] = rise * (135 if is_wide else 30)
    found[BRIGHTNESS : BRIGHTNESS + 4] = rise * (0.99 if is_wide else 0.9)
    found[BRIGHTNESS + 4] = 8 - np.round(rise * (6 if is_wide else 4))  # bits that are left
    found[BRIGHTNESS + 5] = 1 - rise  # share of the brightest
    return found


def operated(images: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    """Pictures uint8 [B, H, W, 3], each after operation `kind` of `strength` [B], in at most one call for each kind."""
    call = CALL.to(kind.device)[kind]
    counts = torch.bincount(call, minlength=len(CALLS)).tolist()
    places = torch.split(call.argsort(stable=True), counts)
    pixels = images.permute(0, 3, 1, 2)
    found = pixels.clone()
    for operate, place in zip(CALLS, places, strict=True):
        if operate is not None and len(place):
            found[place] = operate(pixels[place], kind[place], strength[place].view(-1, 1, 1, 1), fill)
    return found.permute(0, 2, 3, 1)


# Each takes uint8 [B, 3, H, W], the operations [B], their strengths float64 [B, 1, 1, 1] and the colour of the edges.


def _warped(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    """Shear, move or turn, bilinearly; where a pixel comes from is told from the middle, in pixels."""
    height, width = pixels.shape[2:]
    down = torch.arange(height, device=pixels.device).view(1, -1, 1) + (0.5 - height / 2)
    right = torch.arange(width, device=pixels.device).view(1, 1, -1) + (0.5 - width / 2)
    chosen = [torch.where(kind == one, strength.flatten(), 0.0).view(-1, 1, 1) for one in range(SHEAR_X, ROTATE + 1)]
    shear_x, shear_y, move_x, move_y, angle = chosen
    sine, cosine = torch.deg2rad(angle).sin(), torch.deg2rad(angle).cos()
    x = _plane(cosine, right, shear_x - sine, down, shear_x * height / 2 - move_x, 2 / width)
    y = _plane(sine + shear_y, right, cosine, down, shear_y * width / 2 - move_y, 2 / height)
    inside = functional.pad(pixels.float(), (0, 0, 0, 0, 0, 1), value=1.0)  # a channel of what is picture
    found = functional.grid_sample(inside, torch.stack([x, y], dim=3), mode="bilinear", align_corners=False)
    coloured: Tensor = found[:, :3] + (1 - found[:, 3:]) * fill.view(1, 3, 1, 1)
    return coloured.round().to(torch.uint8)


def _plane(a: Tensor, right: Tensor, b: Tensor, down: Tensor, c: Tensor, scale: float) -> Tensor:
    """Scaled a * right + b * down + c, float32 [B, H, W]; no matrix product, which would round by the batch's size."""
    return (scale * a).float() * right + ((scale * b).float() * down + (scale * c).float())


def _blended(pixels: Tensor, other: Tensor | float, strength: Tensor) -> Tensor:
    """Away from another picture by the share `strength`, or towards it where that is negative."""
    factor = 1 + strength.float()
    return (pixels * factor + (1 - factor) * other).clamp(0, 255).to(torch.uint8)


def _brightness(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return _blended(pixels, 0.0, strength)


def _colour(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as operations

    return _blended(pixels, operations.rgb_to_grayscale(pixels), strength)


def _contrast(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as operations

    # Whole numbers add up to the same in any order: a picture's mean is no matter of its batch.
    total = operations.rgb_to_grayscale(pixels).sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)
    return _blended(pixels, total / pixels[0, 0].numel(), strength)


def _sharpness(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as operations

    return _blended(pixels, operations.adjust_sharpness(pixels, 0.0), strength)


def _posterize(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return pixels & (256 - 2 ** (8 - strength.long())).to(torch.uint8)


def _solarize(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    return torch.where(pixels >= (255 * strength).float(), 255 - pixels, pixels)  # which rounds 187.00000000000003


def _autocontrast(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as operations

    found: Tensor = operations.autocontrast(pixels)
    return found


def _equalize(pixels: Tensor, kind: Tensor, strength: Tensor, fill: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional as operations

    found: Tensor = operations.equalize(pixels)
    return found


CALLS: tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None, ...] = (
    *(None, _warped, _brightness, _colour, _contrast, _sharpness, _posterize, _solarize, _autocontrast, _equalize),
)
