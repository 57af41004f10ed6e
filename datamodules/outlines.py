"""COCO's outlines of objects, polygons and run lengths, as pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from datamodules.coco import CocoObject
from datamodules.images import Size

FINE = 3  # times as many pixels a side that polygons are filled with


def area(item: CocoObject, size: Size) -> tuple[NDArray[np.bool_], bool]:
    """Pixels that an object covers, [H, W], and whether it also lies outside."""
    given = item.segmentation
    if isinstance(given, dict):
        return run_lengths(given, size), False
    if not isinstance(given, list) or not given:
        raise ValueError(f"segmentation must be polygons or run lengths, got {str(given)[:60]}")
    covered, is_outside = np.zeros(size, bool), False
    for polygon in given:
        points = _points(polygon)
        is_outside |= bool((points < -0.5).any() or (points > np.array([size[1], size[0]]) + 0.5).any())
        _fill(covered, points)
    return covered, is_outside


def _fill(covered: NDArray[np.bool_], points: NDArray[np.float64]) -> None:
    """Mark the pixels whose middles lie within a polygon [n, 2], x and y."""
    most = np.array(covered.shape[::-1])
    left, top = np.clip(np.floor(points.min(axis=0)), 0, most).astype(int)
    right, bottom = np.clip(np.ceil(points.max(axis=0)), 0, most).astype(int)
    if right <= left or bottom <= top:
        return
    # Pillow fills what its outline touches, too: of nine small pixels only the one in the middle counts.
    canvas = Image.new("1", (FINE * (right - left), FINE * (bottom - top)))
    outline = FINE * (points - (left, top)) - 0.5
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in outline], fill=1)
    covered[top:bottom, left:right] |= np.asarray(canvas)[FINE // 2 :: FINE, FINE // 2 :: FINE]


def _points(polygon: Any) -> NDArray[np.float64]:
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a polygon must be numbers, got {str(polygon)[:60]}") from error
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"a polygon must have 3 points or more, [x, y, x, y, x, y, ..], got {str(polygon)[:60]}")
    return points.reshape(-1, 2)


def run_lengths(given: dict[str, Any], size: Size) -> NDArray[np.bool_]:
    """Pixels out of run lengths, column by column, of nothing and of the object in turns; also as COCO packs them."""
    counts = given.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if given.get("size") != list(size):
        raise ValueError(f"run lengths must be of {list(size)}, [height, width], got {given.get('size')!r}")
    if not isinstance(runs, list) or not _are_lengths(runs):
        raise ValueError(
            f"counts of run lengths must be whole numbers, not below 0, or COCO's text, got {str(counts)[:60]}"
        )
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths must add up to {size[0] * size[1]:,} pixels, got {sum(runs):,}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    found: NDArray[np.bool_] = flat.reshape(size[1], size[0]).T
    return found


def _are_lengths(runs: list[Any]) -> bool:
    return bool(runs) and all(type(run) is int and run >= 0 for run in runs)


def _unpacked(text: str) -> list[int]:
    """COCO's texts of run lengths: five bits a character, from the third on as differences to the last but one."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"run lengths hold {character!r}, which is none of COCO's characters")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs
