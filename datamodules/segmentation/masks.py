"""Masks, pictures whose pixel values are classes, and how they lie behind the picture that they are of.

A pair is decoded to uint8 [H, W, 4]: red, green, blue, and the value of the mask. Masks are resized by taking the
nearest pixel.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from datamodules.images import Picture as Decoded
from datamodules.images import Pixels, Size, decode, prepared
from datamodules.vision.decoded import How, Source

IGNORED = 255  # what stands for a pixel that is of no class
MOST_CLASSES = 255
VERSION = 1  # of what is made here
WHAT = "a mask is a palette or grey image whose pixel values are classes"

Values = NDArray[np.uint8]


@dataclass(frozen=True)
class Mask:
    """A mask in its own size.

    Attributes:
        values: uint8 [H, W].
        handled: what was unusual about it, in words.
    """

    values: Values
    handled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """Pictures with their masks that are not decoded yet.

    Attributes:
        where: that they come from, for messages.
        names: of the pictures.
        image: gives the bytes of one by its place, or its pixels; raises OSError or ValueError.
        mask: gives the mask of one by its place, for a picture of that height and width; raises the same.
        version: JSON of what tells this content from another; None where decoding is not worth a file.
    """

    where: str
    names: Sequence[str]
    image: Callable[[int], bytes | Pixels]
    mask: Callable[[int, Size], Mask]
    version: Any = None

    def source(self, how: How) -> Source:
        """The pairs for `decoded`."""

        def read(place: int) -> Decoded:
            given = self.image(place)
            if isinstance(given, bytes):
                picture = decode(given, size=how.size, most_pixels=how.most_pixels)
            else:
                picture = prepared(given, size=how.size)
            size = picture.size
            mask = self.mask(place, size)
            if mask.values.shape != size:
                raise ValueError(f"its mask has {told(mask.values.shape)} pixels, and it has {told(size)}")
            values = resized(mask.values, (picture.pixels.shape[0], picture.pixels.shape[1]))
            joined = np.concatenate([picture.pixels, values[..., None]], axis=2)
            return Decoded(joined, size, (*picture.handled, *mask.handled))

        version = None if self.version is None else ["masks", VERSION, self.version]
        return Source(self.where, self.names, read, version)


def decode_mask(data: bytes, *, most_pixels: int) -> Values:
    """The values of a mask's pixels, uint8 [H, W].

    Raises:
        ValueError: it is no mask, torn or too large.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            if width * height > most_pixels:
                raise ValueError(
                    f"its mask has {width:,} x {height:,} pixels, more than data.most_pixels={most_pixels:,}"
                )
            if opened.format in ("JPEG", "MPO"):
                raise ValueError("its mask is a JPEG, which does not keep values: give PNG")
            opened.load()
            values = np.asarray(opened)
    except Image.DecompressionBombError as error:
        raise ValueError(f"its mask has more pixels than data.most_pixels={most_pixels:,} ({error})") from error
    except UnidentifiedImageError as error:
        raise ValueError("its mask is no image") from error
    except (OSError, SyntaxError, EOFError, IndexError, OverflowError) as error:
        raise ValueError(f"its mask cannot be decoded: {error}") from error
    if values.ndim == 3 and values.shape[2] >= 3 and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]  # grey in three channels
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise ValueError(f"its mask has colours, of {opened.mode}: {WHAT}")
    if values.size and (int(values.max()) > 255 or int(values.min()) < 0):
        raise ValueError(f"its mask has the value {int(values.max())}: values are from 0 to 255")
    return values.astype(np.uint8)


def resized(values: Values, size: Size) -> Values:
    """The nearest values, [height, width] of `size`."""
    if values.shape == size:
        return values
    found: Values = np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return found


def told(size: Sequence[int]) -> str:
    """Height and width in words."""
    return f"{size[0]} x {size[1]}"


@dataclass(frozen=True)
class Meaning:
    """What the values of masks mean.

    Attributes:
        values: of the classes by their names; None where they are what training masks have.
        ignore: the value of pixels that count for nothing; None for none.
    """

    values: Mapping[str, int] | None
    ignore: int | None

    @classmethod
    def of(cls, classes: Sequence[str] | Mapping[str, int] | None, ignore: int | None) -> "Meaning":
        """The meaning that a config gives. Raises ValueError where it is none."""
        if classes is None:
            return cls(None, ignore)
        names = list(classes)
        values = dict(classes) if isinstance(classes, Mapping) else {name: at for at, name in enumerate(classes)}
        if len(values) < 2 or len(values) > MOST_CLASSES or len(set(values.values())) < len(names):
            raise ValueError(f"classes must be 2 to {MOST_CLASSES} different names or NAME: VALUE; got {names}")
        if strange := [name for name, value in values.items() if not 0 <= value <= 255]:
            raise ValueError(f"classes: values are from 0 to 255; {strange[0]!r} has {values[strange[0]]}")
        if ignore in values.values():
            raise ValueError(f"ignore={ignore} is the value of a class, too: give data.ignore=null or another")
        return cls(values, ignore)

    def checked(self, values: Values) -> Mask:
        """A mask whose classes count from 0 where their names are given, and as it is where they are not.

        Raises ValueError where a value has no meaning.
        """
        if self.values is None:
            return Mask(values)
        found = table_of(list(self.values.values()))[values]
        is_strange = found == IGNORED
        if self.ignore is not None:
            is_strange &= values != self.ignore
        if is_strange.any():
            known = ", ".join(f"{name}={value}" for name, value in list(self.values.items())[:20])
            raise ValueError(
                f"its mask has the value {int(values[is_strange][0])}, which is no class ({known}) and not "
                f"data.ignore={'null' if self.ignore is None else self.ignore}: give data.classes"
            )
        return Mask(found)


def table_of(values: Sequence[int]) -> Values:
    """The class of each value, uint8 [256]: its place among `values`, or `IGNORED`."""
    table = np.full(256, IGNORED, np.uint8)
    table[list(values)] = np.arange(len(values))
    return table
