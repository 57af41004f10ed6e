"""Pictures of every kind that people have are decoded, with what was special about them, or refused in words."""

import io

import numpy as np
import pytest
from PIL import Image

from datamodules.images import calm, decode, prepared

RED, GREEN = (250, 10, 10), (10, 250, 10)
MOST = 1_000_000


def picture(height=8, width=12):
    """Its upper half red, the lower green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2], pixels[height // 2 :] = RED, GREEN
    return pixels


def saved(image, format_="PNG", **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def opened(data, *, size=None, most_pixels=MOST):
    with calm():
        return decode(data, size=size, most_pixels=most_pixels)


def near(pixels, colour):
    return np.abs(pixels.astype(int) - colour).max() < 12


@pytest.mark.parametrize("format_", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG"])
def test_formats_give_the_same_pixels(format_):
    options = (
        {"quality": 95, "subsampling": 0} if format_ == "JPEG" else {"lossless": True} if format_ == "WEBP" else {}
    )
    found = opened(saved(Image.fromarray(picture()), format_, **options))
    assert found.pixels.shape == (8, 12, 3)
    assert found.pixels.dtype == np.uint8
    assert np.abs(found.pixels.astype(int) - picture()).max() < (20 if format_ == "JPEG" else 1)
    assert found.handled == ()


@pytest.mark.parametrize("mode", ["L", "1", "P", "YCbCr", "LA", "RGBA"])
def test_modes_become_three_channels(mode):
    image = Image.fromarray(picture()).convert(mode)
    found = opened(saved(image, "TIFF" if mode == "YCbCr" else "PNG"))
    assert found.pixels.shape == (8, 12, 3)
    assert found.handled == ()
    if mode not in ("L", "1", "LA"):
        assert near(found.pixels[0, 0], RED)


def test_transparent_pixels_lie_on_white():
    clear = Image.fromarray(picture()).convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat(np.uint8([[0], [255]]), [4, 4], axis=0).repeat(12, axis=1)))
    palette = Image.fromarray(picture()).convert("P")
    for data in (saved(clear), saved(palette, transparency=int(np.asarray(palette)[0, 0]))):
        found = opened(data)
        assert near(found.pixels[0, 0], (255, 255, 255))
        assert near(found.pixels[-1, -1], GREEN)
        assert found.handled == ("transparent, put on white",)


def test_of_sixteen_bits_the_upper_eight_are_kept():
    values = np.array([[0, 257, 65_535], [32_896, 1, 500]], np.uint16)
    found = opened(saved(Image.fromarray(values)))
    assert found.pixels[..., 0].tolist() == [[0, 1, 255], [128, 0, 1]]
    assert found.handled == ("of 16 bits, of which 8 are kept",)


def test_cmyk_becomes_rgb():
    found = opened(saved(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found.pixels[1, 1].astype(int) - RED).max() < 30
    assert found.handled == ("in CMYK, converted",)


@pytest.mark.parametrize(("orientation", "corner"), [(3, GREEN), (6, None), (8, None)])
def test_what_exif_rotates_is_turned_upright(orientation, corner):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = opened(saved(Image.fromarray(picture()), exif=exif))
    assert found.handled == ("rotated by EXIF, turned upright",)
    if corner:
        assert near(found.pixels[0, 0], corner)
    else:
        assert found.pixels.shape == (12, 8, 3)
        assert near(found.pixels[:, 0], GREEN if orientation == 6 else RED)


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format_):
    frames = [Image.fromarray(picture()), Image.fromarray(picture()[::-1].copy())]
    found = opened(saved(frames[0], format_, save_all=True, append_images=frames[1:]))
    assert near(found.pixels[0, 0], RED)
    assert found.handled == ("animated, of which the first frame counts",)


def test_a_picture_of_one_pixel_is_told():
    found = opened(saved(Image.new("RGB", (1, 1), RED)), size=(4, 6))
    assert found.pixels.shape == (4, 6, 3)
    assert near(found.pixels, RED)
    assert found.handled == ("of one pixel",)


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_resizing_averages_what_it_makes_smaller(format_):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    found = opened(saved(Image.fromarray(stripes), format_), size=(8, 16))
    assert found.pixels.shape == (8, 16, 3)
    assert near(found.pixels, 100)


def test_what_is_decoded_already_is_resized_alike():
    found = prepared(picture(64, 64), size=(8, 8))
    assert np.array_equal(found.pixels, opened(saved(Image.fromarray(picture(64, 64))), size=(8, 8)).pixels)
    assert prepared(picture(), size=None).pixels.shape == (8, 12, 3)
    assert prepared(Image.fromarray(picture()).convert("L"), size=None).pixels.shape == (8, 12, 3)


PNG = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "it is empty"),
        (b"this is a text", "it is no image"),
        (b"\xff\xd8\xff\xe0" + b"x" * 50, "it is no image|cannot be decoded"),
        (PNG[:1000], "cannot be decoded: .*truncated"),
        (PNG[:40], "cannot be decoded|no image"),
        (saved(Image.fromarray(picture(100, 100)), "JPEG")[:500], "(?i)cannot be decoded: .*truncated"),
        (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point numbers of no fixed range"),
        (saved(Image.fromarray(np.full((4, 4), 2**20, np.int32)), "TIFF"), "32-bit numbers of no fixed range"),
    ],
)
def test_what_is_no_whole_picture_is_refused(data, told):
    with pytest.raises(ValueError, match=told):
        opened(data)


def test_a_gigantic_picture_is_refused_before_it_is_decoded():
    bomb = saved(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(ValueError, match=r"data.most_pixels"):
        opened(bomb)
    with pytest.raises(ValueError, match=r"40 x 40 pixels, more than data.most_pixels=1,000"):
        opened(PNG, most_pixels=1_000)
    assert opened(PNG, most_pixels=1_600).pixels.shape == (40, 40, 3)
