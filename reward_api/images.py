"""Pixels from bytes, refusing what is broken or too large before it costs memory."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from reward_api.contract import ErrorCode, ItemError
from reward_api.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"})


def pixels_from_raw(shape: Sequence[int], data: bytes, limits: Limits) -> NDArray[np.uint8] | ItemError:
    """Raw bytes, row by row, as (H, W, 3) uint8. The array shares the memory of `data`."""
    if len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        return ItemError(ErrorCode.BAD_IMAGE, f"shape must be [height, width, 3], got {list(shape)}")
    height, width, _ = shape
    if height * width > limits.max_pixels:
        return _too_large(height, width, limits)
    if len(data) != height * width * 3:
        message = f"{width}x{height} RGB takes {height * width * 3} bytes, got {len(data)}"
        return ItemError(ErrorCode.BAD_IMAGE, message)
    return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)


def pixels_from_file(data: bytes, limits: Limits) -> NDArray[np.uint8] | ItemError:
    """The bytes of a PNG, JPEG or WebP file as (H, W, 3) uint8 RGB; its size is judged from the header."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.max_pixels:
                return _too_large(height, width, limits)
            if image.mode not in _MODES:
                return ItemError(ErrorCode.BAD_IMAGE, f"pixel format {image.mode} is not 8 bits a channel")
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        message = f"image exceeds {limits.max_pixels} pixels"
        return ItemError(ErrorCode.IMAGE_TOO_LARGE, message)
    except UnidentifiedImageError:
        return ItemError(ErrorCode.BAD_IMAGE, f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file")
    except Exception as error:  # decoders raise many types on hostile bytes: OSError, SyntaxError, struct.error...
        return ItemError(ErrorCode.BAD_IMAGE, f"image cannot be decoded: {error}")


def _too_large(height: int, width: int, limits: Limits) -> ItemError:
    message = f"{width}x{height} is {width * height} pixels, more than {limits.max_pixels}"
    return ItemError(ErrorCode.IMAGE_TOO_LARGE, message)
