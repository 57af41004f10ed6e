"""Pictures as uint8 [H, W, 3]: out of bytes of any format that Pillow reads, upright, resized where that is asked for.

What a picture needs beyond plain decoding is told with it, to be counted and shown.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # height, width
Opened: TypeAlias = Pixels | Image.Image

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif")
)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # modes; of mode I, PNG has 16 bits as well
ORIENTATION = 0x0112  # EXIF's tag of it
SIDEWAYS = (5, 6, 7, 8)  # its values
TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: uint8 [H, W, 3].
        size: height and width before it was resized, upright.
        handled: what it was that a plain picture is not, in words; nothing of a plain one.
    """

    pixels: Pixels
    size: Size
    handled: tuple[str, ...] = ()


@contextmanager
def calm() -> Iterator[None]:
    """Keep Pillow from warning of what `decode` handles or refuses; around many calls, since it costs time."""
    with warnings.catch_warnings():
        quiet()
        yield


def quiet() -> None:
    """The same from now on, for threads that decode while others go on: what `calm` does is done to all of them."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


def decode(data: bytes, *, size: Size | None, most_pixels: int) -> Picture:
    """Decode a picture; call it within `calm`.

    Animations give their first frame, transparent pixels lie on white, 16 bits become 8, CMYK and palettes RGB, and
    what EXIF says is rotated is turned upright. Resizing is bilinear with antialiasing and does not keep the aspect.

    Args:
        data: the file's.
        size: of the result; None for the picture's own.
        most_pixels: of a file; more are not decoded (decompression bombs).

    Raises:
        ValueError: it is no picture, torn, too large, or of a kind that has no fixed range of values.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            if width * height > most_pixels:
                raise ValueError(f"it has {width:,} x {height:,} pixels, more than data.most_pixels={most_pixels:,}")
            return _upright(opened, size)
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more pixels than data.most_pixels={most_pixels:,} ({error})") from error
    except UnidentifiedImageError as error:
        raise ValueError("it is no image, or of an unknown format" if data else "it is empty") from error
    except (OSError, SyntaxError, EOFError, IndexError, OverflowError) as error:  # Pillow's plugins raise all of these
        raise ValueError(f"it cannot be decoded: {error}") from error


def prepared(opened: Opened, *, size: Size | None) -> Picture:
    """A picture that is decoded already, upright, in three channels and resized."""
    if isinstance(opened, np.ndarray):
        if size is None or opened.shape[:2] == size:
            return Picture(opened, opened.shape[:2])
        opened = Image.fromarray(opened)
    return _upright(opened, size)


def _upright(opened: Image.Image, size: Size | None) -> Picture:
    handled, (width, height) = [], opened.size
    if getattr(opened, "is_animated", False) and opened.format != "MPO":  # MPO: a photograph with its previews
        handled.append("animated, of which the first frame counts")
    if size is not None:
        opened.draft(opened.mode, (size[1], size[0]))  # JPEG is decoded at an 8th, 4th or half of its size
    opened.load()
    image = ImageOps.exif_transpose(opened)
    orientation = opened.getexif().get(ORIENTATION) or 1
    if orientation != 1:
        handled.append("rotated by EXIF, turned upright")
    if image.mode in SIXTEEN_BITS:
        handled.append("of 16 bits, of which 8 are kept")
        image = _of_eight_bits(image)
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no fixed range")
    elif image.mode in TRANSPARENT or "transparency" in image.info:
        image = _on_white(image, handled)
    elif image.mode == "CMYK":
        handled.append("in CMYK, converted")
    image = image.convert("RGB")
    if image.size == (1, 1):
        handled.append("of one pixel")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    upright = (width, height) if orientation in SIDEWAYS else (height, width)
    return Picture(np.asarray(image), upright, tuple(handled))


def _of_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.max(initial=0) > 65_535 or values.min(initial=0) < 0:
        raise ValueError("its pixels are 32-bit numbers of no fixed range")
    return Image.fromarray((values // 257).astype(np.uint8))


def _on_white(image: Image.Image, handled: list[str]) -> Image.Image:
    image = image.convert("RGBA")
    if np.asarray(image)[..., 3].min() == 255:
        return image
    handled.append("transparent, put on white")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image)
