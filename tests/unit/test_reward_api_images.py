"""Pixels from bytes: what is refused, and before what it costs."""

from io import BytesIO

import numpy as np
import pytest
from false_pngs import png_header
from PIL import Image

from reward_api import ErrorCode, ItemError, Limits
from reward_api.images import pixels_from_file, pixels_from_raw

pytestmark = pytest.mark.unit


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def noise(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_files_keep_their_pixels(kind: str) -> None:
    np.testing.assert_array_equal(pixels_from_file(encoded(noise(), kind), Limits()), noise())


def test_a_jpeg_is_read() -> None:
    pixels = pixels_from_file(encoded(np.full((8, 9, 3), 90, np.uint8), "JPEG"), Limits())
    assert not isinstance(pixels, ItemError)
    assert pixels.shape == (8, 9, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_other_eight_bit_modes_become_rgb(mode: str) -> None:
    pixels = pixels_from_file(encoded(noise(), mode=mode), Limits())
    assert not isinstance(pixels, ItemError)
    assert pixels.shape == (20, 30, 3)


def test_sixteen_bits_a_channel_are_refused() -> None:
    buffer = BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(buffer, "PNG")
    error = pixels_from_file(buffer.getvalue(), Limits())
    assert isinstance(error, ItemError)
    assert error.code == ErrorCode.BAD_IMAGE


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_bad_images(kind: str, kept: float) -> None:
    data = encoded(noise(200, 200), kind)
    error = pixels_from_file(data[: int(len(data) * kept)], Limits())
    assert isinstance(error, ItemError)
    assert error.code == ErrorCode.BAD_IMAGE


def test_formats_outside_the_list_are_refused() -> None:
    error = pixels_from_file(encoded(noise(), "BMP"), Limits())
    assert isinstance(error, ItemError)
    assert error.code == ErrorCode.BAD_IMAGE
    assert "PNG" in error.message


@pytest.mark.parametrize("side", [5000, 12_000, 40_000])
def test_large_images_are_refused_from_the_header(side: int) -> None:
    error = pixels_from_file(png_header(side, side), Limits())
    assert isinstance(error, ItemError)
    assert error.code == ErrorCode.IMAGE_TOO_LARGE


def test_raw_pixels_are_taken_without_copy() -> None:
    data = noise().tobytes()
    pixels = pixels_from_raw([20, 30, 3], data, Limits())
    assert not isinstance(pixels, ItemError)
    np.testing.assert_array_equal(pixels, noise())
    assert not pixels.flags.owndata


@pytest.mark.parametrize(
    ("shape", "size", "code"),
    [
        ([20, 30, 3], 1799, ErrorCode.BAD_IMAGE),
        ([20, 30, 3], 1801, ErrorCode.BAD_IMAGE),
        ([20, 30, 4], 2400, ErrorCode.BAD_IMAGE),
        ([20, 30], 600, ErrorCode.BAD_IMAGE),
        ([0, 30, 3], 0, ErrorCode.BAD_IMAGE),
        ([-20, -30, 3], 1800, ErrorCode.BAD_IMAGE),
        ([12_000, 12_000, 3], 10, ErrorCode.IMAGE_TOO_LARGE),
        ([10**30, 1, 3], 10, ErrorCode.IMAGE_TOO_LARGE),
    ],
)
def test_raw_pixels_must_fit_their_shape(shape: list[int], size: int, code: str) -> None:
    error = pixels_from_raw(shape, b"\0" * size, Limits())
    assert isinstance(error, ItemError)
    assert error.code == code
