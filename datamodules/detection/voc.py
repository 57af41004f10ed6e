"""Pascal VOC's annotations: an XML file for each image, perhaps with ImageSets/Main/train.txt and the like.

Boxes count pixels from 1 and include the last one; what is `difficult` is neither to be learnt nor a mistake if found.
"""

import math
import posixpath
from collections.abc import Sequence
from xml.etree import ElementTree

from datamodules.detection.given import Given
from datamodules.detection.objects import Objects
from datamodules.images import Size
from datamodules.splits import USUAL
from datamodules.vision.files import Files, read_bytes

SIDES = ("xmin", "ymin", "xmax", "ymax")


def is_there(files: Files) -> bool:
    """Whether a folder has images and XML files."""
    return bool(files.images) and any(path.lower().endswith(".xml") for path in files.others)


def splits(uri: str, files: Files, notes: list[str]) -> dict[str, list[str]]:
    """Images by the split that ImageSets/Main names, train first; all train where it does not.

    Raises ValueError where there are no images, or a list names one that is not there.
    """
    images = photographs(files)
    if not images:
        raise ValueError(f"{uri}: there are no images")
    by_stem = _by_stem(uri, images)
    found = {}
    for split, aliases in USUAL.items():
        there = [path for path in files.others if path in [f"ImageSets/Main/{alias}.txt" for alias in aliases]]
        if there:
            found[split] = _listed(uri, files, there[0], by_stem)
    if "train" not in found and (both := [path for path in files.others if path == "ImageSets/Main/trainval.txt"]):
        taken = set(found.get("val", []))
        listed = _listed(uri, files, both[0], by_stem)
        found = {"train": [image for image in listed if image not in taken], **found}
    if not found:
        return {"train": images}
    if "train" not in found:
        raise ValueError(f"{uri}/ImageSets/Main: there are lists of {', '.join(found)} and none called train.txt")
    taken = {image for images in found.values() for image in images}
    if others := [image for image in images if image not in taken]:
        notes.append(f"{len(others):,} images of {uri} are in no list of ImageSets (such as {others[0]}): left out")
    return found


def _listed(uri: str, files: Files, path: str, by_stem: dict[str, str]) -> list[str]:
    lines = read_bytes(files.filesystem, f"{files.root}/{path}").decode(errors="replace").splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    if lost := [name for name in names if name not in by_stem]:
        raise ValueError(f"{uri}/{path}: there must be an image of each name, and there is none of {lost[0]!r}")
    return sorted(by_stem[name] for name in names)


def given(uri: str, files: Files, images: Sequence[str], notes: list[str]) -> Given:
    """Some of a folder's images with what the XML files of their names tell."""
    by_stem = _by_stem(uri, [path for path in files.others if path.lower().endswith(".xml")])
    _by_stem(uri, photographs(files))
    objects, sizes = [], []
    for image in images:
        path = by_stem.get(_stem(image))
        text = read_bytes(files.filesystem, f"{files.root}/{path}") if path else b"<annotation/>"
        found, size = _objects(text, f"{uri.rstrip('/')}/{path}")
        objects.append(found)
        sizes.append(size)
    if bare := [image for image in images if _stem(image) not in by_stem]:
        notes.append(f"{len(bare):,} images of {uri} have no XML file (such as {bare[0]}): nothing is in them")
    if len(bare) == len(images):
        raise ValueError(f"{uri}: no image has an XML file of its name, such as {_stem(images[0])}.xml")
    there = {_stem(image) for image in files.images}
    if lost := sorted(path for stem, path in by_stem.items() if stem not in there):
        told = f"{len(lost):,} XML files of {uri} are of no image (such as {lost[0]}): left out"
        if told not in notes:
            notes.append(told)
    return Given(files.source(uri, list(images)), objects, sizes=sizes)


def photographs(files: Files) -> list[str]:
    """The images but for the masks that lie beside them; those of JPEGImages where there is such a folder."""
    kept = [path for path in files.images if not path.startswith("Segmentation") and "/Segmentation" not in path]
    return [path for path in kept if "JPEGImages" in path.split("/")[:-1]] or kept


def _by_stem(uri: str, paths: Sequence[str]) -> dict[str, str]:
    """Paths by the names that an image shares with its XML file. Raises ValueError where two have one name."""
    found: dict[str, str] = {}
    for path in paths:
        if (other := found.setdefault(_stem(path), path)) != path:
            raise ValueError(f"{uri}: files must have names of their own; {other} and {path} share one")
    return found


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def _objects(text: bytes, where: str) -> tuple[Objects, Size | None]:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{where}, line {error.position[0]}: it must be XML: {error}") from error
    except (LookupError, ValueError) as error:  # of an encoding that there is not, or that is another
        raise ValueError(f"{where}: it must be XML: {error}") from error
    boxes, labels, crowds = [], [], []
    for place, found in enumerate(root.iter("object"), start=1):
        name, box = found.findtext("name"), found.find("bndbox")
        if not name or box is None:
            raise ValueError(f"{where}, object {place}: it must have a name and a bndbox")
        left, top, right, bottom = (_number(box, side, f"{where}, object {place}") for side in SIDES)
        boxes.append([left - 1, top - 1, right, bottom])
        labels.append(name.strip())
        crowds.append(_flag(found.findtext("difficult"), f"{where}, object {place}"))
    return Objects.of(boxes, labels, crowds), _size(root)


def _flag(text: str | None, where: str) -> bool:
    value = (text or "0").strip()
    if value not in ("0", "1"):
        raise ValueError(f"{where}: difficult must be 0 or 1, got {value!r}")
    return value == "1"


def _size(root: ElementTree.Element) -> Size | None:
    """Height and width that a file tells; None where it tells none, or 0 as some programs write."""
    sides = [(root.findtext(f"size/{name}") or "").strip() for name in ("height", "width")]
    return (int(sides[0]), int(sides[1])) if all(side.isdecimal() and int(side) for side in sides) else None


def _number(box: ElementTree.Element, side: str, where: str) -> float:
    text = box.findtext(side)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {side} must be a number, got {text!r}")
    return value
