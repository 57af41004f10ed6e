"""Images and masks of one's own, in two folders, paired by the names of the files."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Unpack

from annotated_types import Ge, Le

from datamodules.images import Size
from datamodules.segmentation.datamodule import Options, SegmentationDataModule
from datamodules.segmentation.masks import Mask, Meaning, Pairs, decode_mask
from datamodules.splits import parts_by_folders
from datamodules.vision.files import Files, files_in, read_bytes

Classes = list[str] | dict[str, int] | None
Value = Annotated[int, Ge(0), Le(255)]


class MaskFolder(SegmentationDataModule):
    """A folder that holds a folder of images and one of masks, local or on S3.

    An image and its mask have the same name but for their suffix, and lie equally deep. Splits are folders called
    train, val and test (or as usual for these) above the two folders, or within them; one without a folder is taken
    out of the training images.

    Args:
        path: where the folder is.
        images: name of the folder of images.
        masks: name of the folder of masks.
        mask_suffix: what the names of masks have besides, such as _mask.
        classes: names of the values 0, 1, ..; or NAME: VALUE; None to number the values that training masks have.
        ignore: value of pixels that count for nothing; None for none.
        options: see `Options`.
    """

    def __init__(
        self,
        *,
        path: str,
        images: str,
        masks: str,
        mask_suffix: str,
        classes: Classes,
        ignore: Value | None,
        **options: Unpack[Options],
    ) -> None:
        raw = {"images": images, "masks": masks, "mask_suffix": mask_suffix}
        super().__init__(raw, Meaning.of(classes, ignore), options)
        self.path = path
        self.name = path.rstrip("/").rsplit("/", 1)[-1]

    def read(self) -> dict[str, Pairs]:
        """For each split that the folders name, train first, its images and masks."""
        return splits_of(self.path, self.raw, self.meaning, self.options, self.notes)


def splits_of(
    uri: str, raw: Mapping[str, Any], meaning: Meaning, options: Options, notes: list[str]
) -> dict[str, Pairs]:
    """The pairs of a folder by the splits that its folders name, train first; all are training ones if none is named.

    Raises ValueError where there are none, or files lack their other half.
    """
    files = files_in(uri)
    pairs = _paired(uri, files, raw, options, notes)
    tops = {name: name.partition("/")[0] if "/" in name else "." for name in pairs}
    folders = parts_by_folders(uri, set(tops.values()))
    if not folders:
        return {"train": _pairs(uri, files, pairs, meaning, options)}
    own = {split: {name: at for name, at in pairs.items() if tops[name] == top} for split, top in folders.items()}
    return {split: _pairs(uri, files, some, meaning, options) for split, some in own.items()}


def _paired(
    uri: str, files: Files, raw: Mapping[str, Any], options: Options, notes: list[str]
) -> dict[str, tuple[str, str]]:
    """Paths of image and mask by what their names have in common, `SPLIT/..` where there are such folders."""
    halves = {
        kind: _named(uri, files, raw[f"{kind}s"], raw["mask_suffix"] if kind == "mask" else "")
        for kind in ("image", "mask")
    }
    left = len(files.images) - sum(map(len, halves.values()))
    if left > 0:
        notes.append(f"{left:,} images of {uri} lie in no folder {raw['images']!r} or {raw['masks']!r}: left out")
    if files.others:
        told = f"{len(files.others):,} files of {uri} are no images by their names (such as {files.others[0]})"
        notes.append(f"{told}: left out")
    for kind, found in halves.items():
        if not found:
            raise ValueError(
                f"{uri}: there are no images in a folder {raw[f'{kind}s']!r}; give data.images and data.masks, the "
                "names of the folders of images and of masks, and data.mask_suffix"
            )
    for kind, other in (("image", "mask"), ("mask", "image")):
        if lonely := sorted(set(halves[kind]) - set(halves[other])):
            more = f" (and {len(lonely) - 1:,} more)" if len(lonely) > 1 else ""
            told = f"{halves[kind][lonely[0]]}: there is no {other} of this {kind}{more}"
            if options["unreadable"] == "error":
                raise ValueError(f"{uri}: {told}; add or remove it, or give data.unreadable=skip")
            notes.append(f"left out: {uri}: {told}")
    both = sorted(set(halves["image"]) & set(halves["mask"]))
    if not both:
        raise ValueError(f"{uri}: no image has a mask of the same name; give data.mask_suffix if masks have one")
    return {name: (halves["image"][name], halves["mask"][name]) for name in both}


def _named(uri: str, files: Files, folder: str, suffix: str) -> dict[str, str]:
    """Paths of the images in the folders of this name, by path without folder and suffix."""
    found: dict[str, str] = {}
    for path in files.images:
        parts = posixpath.splitext(path)[0].split("/")
        if folder not in parts[:-1]:
            continue
        if not parts[-1].endswith(suffix):
            raise ValueError(f"{uri}: {path}: the name of this mask does not end in data.mask_suffix={suffix!r}")
        parts.remove(folder)
        name = "/".join(parts).removesuffix(suffix) if suffix else "/".join(parts)
        if name in found:
            raise ValueError(f"{uri}: {found[name]} and {path} have one name: which one is meant?")
        found[name] = path
    return found


def _pairs(uri: str, files: Files, paths: dict[str, tuple[str, str]], meaning: Meaning, options: Options) -> Pairs:
    images, masks = zip(*paths.values(), strict=True)
    return pairs_of_files(uri, files, images, masks, meaning, options)


def pairs_of_files(
    uri: str, files: Files, images: Sequence[str], masks: Sequence[str], meaning: Meaning, options: Options
) -> Pairs:
    """Images and their masks by their paths below a folder, not decoded yet."""

    def mask(place: int, _: Size) -> Mask:
        data = read_bytes(files.filesystem, f"{files.root}/{masks[place]}")
        try:
            return meaning.checked(decode_mask(data, most_pixels=options["most_pixels"]))
        except ValueError as error:
            raise ValueError(f"{error} ({masks[place]})") from error

    source = files.source(uri, images)
    times = [[name, *files.images[name]] for name in masks]
    version = [source.version, times, meaning.values, meaning.ignore]
    return Pairs(
        uri, images, lambda place: read_bytes(files.filesystem, f"{files.root}/{images[place]}"), mask, version
    )
