"""YOLO's text files: beside each image, or in `labels` for `images`, one of its name with a line for each object.

A line is a class number and centre, width and height of the box, or the corners of a polygon, as shares of the
picture. Names of classes are in data.yaml (`names`) or classes.txt; without them the numbers are the names. Splits are
those of data.yaml (`train`, `val` and `test`: folders, or text files that list images), else of lists called train.txt
and so on, else of folders called so (or as usual for these).
"""

import math
import posixpath
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from datamodules.detection.given import Given
from datamodules.detection.objects import Objects
from datamodules.splits import USUAL
from datamodules.vision.files import Files, read_bytes

RULE = "CLASS X Y WIDTH HEIGHT, the centre and the size as shares of the picture, or CLASS X Y X Y X Y .. of a polygon"
NAMES = ("data.yaml", "data.yml", "dataset.yaml")  # files that tell of the data, of which the first counts
CLASSES = "classes.txt"  # where none of them names classes
NO_LABELS = ("classes.txt", "readme.txt", "train.txt", "val.txt", "valid.txt", "test.txt")
ROUNDING = 1e-3  # by which writers of shares leave the picture


def is_there(files: Files) -> bool:
    """Whether a folder has images and text files of theirs."""
    return bool(_label_files(files)) and bool(files.images)


def splits(uri: str, files: Files, notes: list[str]) -> dict[str, list[str]]:
    """Images by the split that data.yaml, lists or their folders name, train first; all train where none does.

    Raises ValueError where there are no images, or none that train.
    """
    if not files.images:
        raise ValueError(f"{uri}: there are no images")
    if found := _told_splits(uri, files, notes):
        return found
    return _splits_by_folders(uri, files, notes)


def _told_splits(uri: str, files: Files, notes: list[str]) -> dict[str, list[str]]:
    """Images of each split that data.yaml or lists tell of, train first; nothing where they tell of none."""
    path, told = _told(uri, files)
    asked = {split: told[split] for split in USUAL if told.get(split)}
    if not asked:
        path = "the lists"
        names = {split: [f"{alias}.txt" for alias in aliases] for split, aliases in USUAL.items()}
        asked = {
            split: there for split, some in names.items() if (there := [name for name in some if name in files.others])
        }
    if not asked:
        return {}
    found: dict[str, list[str]] = {}
    for split, given in asked.items():
        entries = given if isinstance(given, list) else [given]
        images = [image for entry in entries for image in _images_of(uri, files, str(entry))]
        if images:
            found[split] = sorted(set(images))
        else:
            notes.append(f"{uri}: {path} names {split}: {given!r}, where there are no images: left out")
    if "train" not in found:
        raise ValueError(f"{uri}: {path} must name training images, and names {', '.join(found) or 'none'}")
    for split in [split for split in found if split != "train"]:
        if shared := set(found[split]) & set(found["train"]):
            notes.append(f"{len(shared):,} images of {uri} are named by train and by {split}: they train")
            found[split] = [image for image in found[split] if image not in shared]
            if not found[split]:
                del found[split]
    named = {image for images in found.values() for image in images}
    if others := [image for image in files.images if image not in named]:
        notes.append(f"{len(others):,} images of {uri} are in no split of {path} (such as {others[0]}): left out")
    return found


def _images_of(uri: str, files: Files, entry: str) -> list[str]:
    """The images of a folder or a list; none where there is no such thing."""
    there = {*files.folders, *files.others, "."}
    relative = posixpath.normpath(entry).lstrip("./") or "."
    place = _below(entry, there) if posixpath.isabs(entry) else relative if relative in there else None
    if place is None:
        return []
    if place not in files.others:
        return [image for image in files.images if place == "." or image.startswith(f"{place}/")]
    lines = read_bytes(files.filesystem, f"{files.root}/{place}").decode("utf-8-sig", errors="replace").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image = _below(line.strip(), files.images)
        if image is None:
            raise ValueError(f"{uri.rstrip('/')}/{place}, line {number}: there is no such image: {line.strip()!r}")
        found.append(image)
    return found


def _below(path: str, there: Container[str]) -> str | None:
    """The longest end of a path that is there: those of YOLO start anywhere, at other machines' folders, too."""
    parts = posixpath.normpath(path.replace("\\", "/")).split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in there), None)


def _splits_by_folders(uri: str, files: Files, notes: list[str]) -> dict[str, list[str]]:
    known = {alias: split for split, aliases in USUAL.items() for alias in aliases}
    found: dict[str, list[str]] = {}
    for path in files.images:
        named = [known[part.lower()] for part in path.split("/")[:-1] if part.lower() in known]
        found.setdefault(named[0] if named else "", []).append(path)
    others = found.pop("", [])
    if not found:
        return {"train": others}
    if "train" not in found:
        raise ValueError(f"{uri}: there are folders for {', '.join(found)} and none called train")
    if others:
        notes.append(f"{len(others):,} images of {uri} lie in no folder of a split (such as {others[0]}): left out")
    return {split: found[split] for split in USUAL if split in found}


def given(uri: str, files: Files, images: Sequence[str], notes: list[str]) -> Given:
    """Some of a folder's images with what their text files name.

    Raises ValueError naming file and line of what is broken.
    """
    labels = _label_files(files)
    names = _names(uri, files)
    where = {image: _label_of(image) for image in images}
    objects = []
    for path in where.values():
        text = read_bytes(files.filesystem, f"{files.root}/{path}") if path in labels else b""
        objects.append(_objects(text, f"{uri.rstrip('/')}/{path}", names))
    if bare := [image for image, path in where.items() if path not in labels]:
        notes.append(f"{len(bare):,} images of {uri} have no text file (such as {bare[0]}): nothing is in them")
    if len(bare) == len(images):
        raise ValueError(f"{uri}: no image has a text file of its own, such as {_label_of(images[0])}")
    wanted: dict[str, str] = {}
    for image in files.images:
        if (other := wanted.setdefault(_label_of(image), image)) != image:
            raise ValueError(f"{uri}: images must have names of their own; {other} and {image} share one text file")
    if lost := sorted(labels - wanted.keys()):
        told = f"{len(lost):,} text files of {uri} are of no image (such as {lost[0]}): left out"
        if told not in notes:
            notes.append(told)
    return Given(files.source(uri, list(images)), objects, in_shares=True)


def _label_files(files: Files) -> set[str]:
    texts = [path for path in files.others if path.lower().endswith(".txt")]
    return {path for path in texts if posixpath.basename(path).lower() not in NO_LABELS}


def _label_of(image: str) -> str:
    """The text file of an image: the last folder called images is labels."""
    parts = posixpath.splitext(image)[0].split("/")
    places = [place for place, part in enumerate(parts[:-1]) if part.lower() == "images"]
    if places:
        parts[places[-1]] = "labels"
    return "/".join(parts) + ".txt"


def _told(uri: str, files: Files) -> tuple[str | None, Mapping[str, Any]]:
    """Which file tells of the data, and what: one of the usual name, else the only YAML file beside the folders."""
    own = [path for path in files.others if "/" not in path and path.lower().endswith((".yaml", ".yml"))]
    there = [name for name in NAMES if name in own] or (own if len(own) == 1 else [])
    if not there:
        return None, {}
    try:
        found = yaml.safe_load(read_bytes(files.filesystem, f"{files.root}/{there[0]}"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri.rstrip('/')}/{there[0]}: it cannot be read: {' '.join(str(error).split())}") from error
    if there[0] not in NAMES and not (isinstance(found, dict) and "names" in found):
        return None, {}  # of something else
    if not isinstance(found, dict):
        raise ValueError(f"{uri.rstrip('/')}/{there[0]}: it must map names to values, got {str(found)[:60]!r}")
    return there[0], found


def _names(uri: str, files: Files) -> Mapping[int, str]:
    """Names of classes by number; nothing where none are given."""
    path, told = _told(uri, files)
    found: Any = told.get("names")
    if found is None and CLASSES in files.others:
        path = CLASSES
        text = read_bytes(files.filesystem, f"{files.root}/{CLASSES}").decode("utf-8-sig", errors="replace")
        found = [line.strip() for line in text.rstrip().split("\n")]
        if "" in found:
            raise ValueError(f"{uri.rstrip('/')}/{CLASSES}, line {found.index('') + 1}: each line must name a class")
    elif path is None:
        return {}
    where = f"{uri.rstrip('/')}/{path}"
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else None
    if pairs is None:
        raise ValueError(f"{where}: names must be a list or a mapping of numbers to names, got {found!r}")
    try:
        names = {int(str(number)): str(name) for number, name in pairs}
    except ValueError as error:
        raise ValueError(f"{where}: names must be a list or a mapping of numbers to names, got {found!r}") from error
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise ValueError(f"{where}: a class must have a name of its own; {twice[0]!r} is that of two")
    return names


def _objects(text: bytes, path: str, names: Mapping[int, str]) -> Objects:
    boxes, labels = [], []
    for number, line in enumerate(text.decode(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        label, *places = _numbers(line, where)
        if names and int(label) not in names:
            raise ValueError(f"{where}: the class must be one of {min(names)} to {max(names)}, got {line!r}")
        boxes.append(_box(places))
        labels.append(names.get(int(label), str(int(label))))
    return Objects.of(boxes, labels)


def _numbers(line: str, where: str) -> list[float]:
    try:
        found = [float(word) for word in line.split()]
    except ValueError:
        found = []
    is_polygon = len(found) >= 7 and len(found) % 2 == 1
    if not (len(found) == 5 or is_polygon) or not all(map(math.isfinite, found)) or found[0] < 0 or found[0] % 1:
        raise ValueError(f"{where}: it must be {RULE}; it is {line[:80]!r}")
    if not is_polygon and min(found[3:]) < 0:
        raise ValueError(f"{where}: width and height must not be below 0; it is {line[:80]!r}")
    if max(map(abs, found[1:])) > 2 + ROUNDING:
        raise ValueError(f"{where}: places must be shares of the picture, not pixels; it is {line[:80]!r}")
    return found


def _box(places: Sequence[float]) -> list[float]:
    if len(places) > 4:
        return [min(places[::2]), min(places[1::2]), max(places[::2]), max(places[1::2])]
    x, y, width, height = places
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
