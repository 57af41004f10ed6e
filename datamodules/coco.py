"""COCO's annotation files: images, categories, and objects with boxes, segments and crowds (https://cocodataset.org)."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datamodules.sources import place_of

ALLOWED = "a COCO annotation file, local or s3://bucket/key"


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        category: its name.
        box: left, top, right, bottom in pixels, the right and bottom ones exclusive; it may leave the image.
        segmentation: a list of polygons [x, y, x, y, ..], or run lengths {counts, size}; None where there is none.
        is_crowd: whether it stands for many objects that nobody has told apart.
    """

    category: str
    box: tuple[float, float, float, float]
    segmentation: Any
    is_crowd: bool


@dataclass(frozen=True)
class CocoImage:
    """One image with its objects.

    Attributes:
        name: of the file.
        size: height and width as the file tells; None where it does not.
        objects: in it, in the file's order.
    """

    name: str
    size: tuple[int, int] | None
    objects: tuple[CocoObject, ...]


def read_coco(uri: str, notes: list[str]) -> list[CocoImage]:
    """All images of an annotation file, in its order, also those without objects.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken; the message names the entry, the rule and the value.
    """
    parts = _parts(uri)
    categories: dict[Any, str] = {}
    for place, entry in enumerate(parts["categories"]):
        where = f"{uri}, categories[{place}]"
        number = _field(entry, "id", where)
        if number in categories:
            raise ValueError(f"{where}: id must be a category's own; {number!r} is that of two")
        categories[number] = str(_field(entry, "name", where))
    names: dict[Any, tuple[str, tuple[int, int] | None]] = {}
    for place, entry in enumerate(parts["images"]):
        where = f"{uri}, images[{place}]"
        number = _field(entry, "id", where)
        if number in names:
            raise ValueError(f"{where}: id must be an image's own; {number!r} is that of two")
        size = _size(entry, where)
        names[number] = str(_field(entry, "file_name", where)), size
    objects: dict[Any, list[CocoObject]] = {number: [] for number in names}
    num_lost = 0
    for place, entry in enumerate(parts["annotations"]):
        where = f"{uri}, annotations[{place}]"
        number = _field(entry, "image_id", where)
        found = _object(entry, categories, where)
        if number in objects:
            objects[number].append(found)
        else:
            num_lost += 1
    if num_lost and num_lost == len(parts["annotations"]):
        some = parts["annotations"][0]["image_id"]
        raise ValueError(f"{uri}: no image_id is the id of an image (such as {some!r}); is one a text, one a number?")
    if num_lost:
        notes.append(f"{num_lost:,} annotations of {uri} are of images that it does not list: left out")
    if twice := [name for name, count in Counter(name for name, _ in names.values()).items() if count > 1]:
        raise ValueError(f"{uri}: file_name must be an image's own; {twice[0]!r} is that of two")
    return [CocoImage(*names[number], tuple(objects[number])) for number in names]


def _parts(uri: str) -> dict[str, list[Mapping[str, Any]]]:
    filesystem, path = place_of(uri, ALLOWED)
    try:
        with filesystem.open_input_file(path) as file:
            found = json.loads(bytes(file.read()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {uri!r}; give {ALLOWED}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{uri}, line {error.lineno}, column {error.colno}: it must be JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{uri}: it cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{uri}: it must be a JSON object with images, annotations and categories")
    for name in ("images", "annotations", "categories"):
        given = found.get(name)
        if not isinstance(given, list):
            raise ValueError(f"{uri}: it must have a list {name!r}; it has {', '.join(map(repr, list(found)[:8]))}")
        if strange := [place for place, entry in enumerate(given) if not isinstance(entry, dict)]:
            raise ValueError(f"{uri}, {name}[{strange[0]}]: it must be an object, got {given[strange[0]]!r}")
    return found


def _field(entry: Mapping[str, Any], name: str, where: str) -> Any:
    if isinstance(entry.get(name), (str, int)):
        return entry[name]
    raise ValueError(f"{where}: {name} must be a text or a whole number, got {entry.get(name)!r}")


def _size(entry: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    sides = [entry.get(name) for name in ("height", "width")]
    if not all(sides):
        return None
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{where}: height and width must be whole numbers above 0, got {sides!r}")
    return sides[0], sides[1]  # type: ignore[return-value]


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and math.isfinite(float(value))
    except OverflowError:
        return False


def _object(entry: Mapping[str, Any], categories: Mapping[Any, str], where: str) -> CocoObject:
    number = _field(entry, "category_id", where)
    if number not in categories:
        raise ValueError(f"{where}: category_id must be among those of categories, got {number!r}")
    box: Any = entry.get("bbox")
    is_box = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
    if not is_box or box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: bbox must be [left, top, width, height], not below 0 wide and high, got {box!r}")
    left, top, width, height = map(float, box)
    crowd = entry.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise ValueError(f"{where}: iscrowd must be 0 or 1, got {crowd!r}")
    return CocoObject(
        categories[number],
        (left, top, left + width, top + height),
        entry.get("segmentation"),
        bool(crowd),
    )
