"""Scenes to find things in: scikit-learn's handwritten digits on cluttered, textured ground, boxes and masks exact.

Deterministic: scene i of a split is a function of (seed, split, i) alone. The digits themselves are split, too: what
validates or tests is in handwriting that training has not seen.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

VERSION = 1  # of what is made here
CLASSES = tuple(str(digit) for digit in range(10))

MOST_DIGITS = 5  # of a scene, at least 1
SIDES = 0.22, 0.46  # of a digit, in shares of the scene's side
MOST_TILT = 20.0  # degrees; more would turn a 6 into a 9
LEAST_VISIBLE = 0.6  # share of a digit's ink that others may leave of it
LEAST_CONTRAST = 70  # between a digit's colour and the ground's mean, in levels of brightness
INK = 128  # what counts as the digit, of 255
PARTS = 0.7, 0.85  # of the 1,797 digits, where those for validation and those for testing begin
ATTEMPTS = 20


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it.

    Attributes:
        image: uint8 [H, W, 3].
        owner: which digit each pixel shows, uint8 [H, W]: 0 for the ground, i + 1 for digit i.
        labels: of the digits, int64 [n].
        boxes: around what is to be seen of each, float32 [n, 4]: left, top, right, bottom in pixels, the right and
            bottom ones exclusive.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]

    @property
    def classes(self) -> NDArray[np.uint8]:
        """What each pixel is, uint8 [H, W]: 0 for the ground, c + 1 for a digit of class c."""
        found: NDArray[np.uint8] = np.concatenate([[0], self.labels + 1]).astype(np.uint8)[self.owner]
        return found


def scenes(split: str, num: int, *, size: int, seed: int) -> list[Scene]:
    """Compose scenes of `size` x `size` pixels.

    Args:
        split: train, val or test; each has digits of its own.
        num: of scenes.
        size: of a side, at least 32 pixels.
        seed: of everything that is drawn.
    """
    if size < 32:
        raise ValueError(f"scenes need at least 32 pixels a side, got {size}")
    images, labels = _digits(split)
    key = ("train", "val", "test").index(split)
    return [_scene(images, labels, size, np.random.default_rng((seed, key, index))) for index in range(num)]


def _digits(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    first, second = (int(share * len(found.target)) for share in PARTS)
    part = {"train": slice(0, first), "val": slice(first, second), "test": slice(second, None)}[split]
    return (found.images[part] * (255 / 16)).round().astype(np.uint8), found.target[part].astype(np.int64)


def _scene(images: NDArray[np.uint8], labels: NDArray[np.int64], size: int, draw: np.random.Generator) -> Scene:
    canvas = _ground(size, draw)
    owner = np.zeros((size, size), np.uint8)
    kept: list[int] = []
    sizes: list[int] = []  # of the ink of each, with nothing before it
    for _ in range(draw.integers(1, MOST_DIGITS + 1)):
        for _ in range(ATTEMPTS):
            which = int(draw.integers(len(labels)))
            ink, top, left = _placed(images[which], size, draw)
            after = owner.copy()
            rows, columns = slice(top, top + len(ink)), slice(left, left + ink.shape[1])
            after[rows, columns][ink >= INK] = len(kept) + 1
            seen = np.bincount(after.ravel(), minlength=len(kept) + 2)[1:]
            if all(part >= LEAST_VISIBLE * whole for part, whole in zip(seen, [*sizes, seen[-1]], strict=True)):
                canvas[rows, columns] = _painted(canvas[rows, columns], ink, draw)
                owner = after
                kept.append(int(labels[which]))
                sizes.append(int(seen[-1]))
                break
    noise = draw.normal(0, draw.uniform(2, 8), canvas.shape)
    image = np.clip(canvas + noise, 0, 255).round().astype(np.uint8)
    return Scene(image, owner, np.array(kept, np.int64), _boxes(owner, len(kept)))


def _ground(size: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Noise of several wavelengths in colour, with strokes, blots and frames that are no digits, float [H, W, 3]."""
    total = np.broadcast_to(draw.uniform(40, 215, 3), (size, size, 3)).copy()
    for cells in (3, 8, 20):
        values = draw.uniform(0, 255, (cells, cells, 3)).astype(np.uint8)
        layer = np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC), np.float64)
        total += (layer - 127.5) * draw.uniform(0.1, 0.35)
    picture = Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(draw.integers(3, 9)):
        _distract(pen, size, draw)
    return np.asarray(picture, np.float64)


def _distract(pen: ImageDraw.ImageDraw, size: int, draw: np.random.Generator) -> None:
    colour: Any = tuple(int(level) for level in draw.integers(0, 256, 3))
    left, top, right, bottom = (float(place) for place in draw.uniform(-0.1, 1.1, 4) * size)
    box = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    width = int(draw.integers(1, max(2, size // 32) + 1))
    match draw.integers(4):
        case 0:
            pen.line((left, top, right, bottom), fill=colour, width=width)
        case 1:
            pen.rectangle(box, outline=colour, width=width)
        case 2:
            pen.polygon([(left, top), (right, bottom), (left, bottom)], outline=colour, width=width)
        case _:
            pen.ellipse((left, top, left + size / 8, top + size / 8), fill=colour)


def _placed(digit: NDArray[np.uint8], size: int, draw: np.random.Generator) -> tuple[NDArray[np.uint8], int, int]:
    """A digit enlarged and tilted, cut to its ink [h, w], and where it lies: wholly within the scene."""
    side = draw.uniform(*SIDES) * size
    width, height = (max(8, round(side * stretch)) for stretch in draw.uniform(0.85, 1.15, 2))
    large = Image.fromarray(digit).resize((width, height), Image.Resampling.BICUBIC)
    turned = large.rotate(draw.uniform(-MOST_TILT, MOST_TILT), Image.Resampling.BICUBIC, expand=True)
    ink = np.asarray(turned)
    rows, columns = (np.flatnonzero((ink >= INK).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = (int(draw.integers(0, size - extent + 1)) for extent in ink.shape)
    return ink, top, left


def _painted(ground: NDArray[np.float64], ink: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.float64]:
    """The ground [h, w, 3] under ink of a colour that stands out from it."""
    mean = ground.mean()
    for _ in range(ATTEMPTS):
        colour = draw.uniform(0, 255, 3)
        if abs(colour.mean() - mean) >= LEAST_CONTRAST:
            break
    # Steep at the edge, so that what the mask calls ink is what one sees.
    share = np.clip((ink.astype(np.float64) - INK) / 64 + 0.5, 0, 1)[..., None]
    return ground * (1 - share) + colour * share


def _boxes(owner: NDArray[np.uint8], num: int) -> NDArray[np.float32]:
    boxes = np.empty((num, 4), np.float32)
    for index in range(num):
        rows, columns = (np.flatnonzero((owner == index + 1).any(axis=axis)) for axis in (1, 0))
        boxes[index] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
