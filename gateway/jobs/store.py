"""Stored images: one file for each content, under the digest of its pixels."""

import contextlib
import hashlib
import os
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray


def digest_of(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of shape and pixels, (H, W, 3) uint8; not of a file: a PNG and raw pixels may be the same image."""
    height, width, _ = pixels.shape
    found = hashlib.sha256(f"{height}x{width} ".encode())
    found.update(np.ascontiguousarray(pixels).data)
    return found.hexdigest()


class ImageStore:
    """Images in `folder`. Writers of the same image in several processes do not disturb each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._aside = folder / "aside"

    def put(self, digest: str, pixels: NDArray[np.uint8]) -> None:
        """Stores an image under its digest unless it is there. Raises OSError."""
        path = self._path(digest)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._aside.mkdir(exist_ok=True)
        aside = self._aside / uuid4().hex
        try:
            with aside.open("wb") as file:
                np.save(file, pixels, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def get(self, digest: str) -> NDArray[np.uint8]:
        """The pixels. Raises ValueError where the file is missing or is not what its name says."""
        try:
            pixels = np.load(self._path(digest), allow_pickle=False)
            if pixels.dtype == np.uint8 and pixels.ndim == 3 and digest_of(pixels) == digest:
                return np.asarray(pixels, np.uint8)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"stored image {digest}: {error}") from error
        raise ValueError(f"stored image {digest} is damaged")

    def remove(self, digest: str) -> None:
        """Removes an image, if it is there."""
        self._path(digest).unlink(missing_ok=True)

    def clean(self, older_than_s: float) -> None:
        """Removes what writers left behind that were killed."""
        for path in self._aside.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - older_than_s:
                    path.unlink()

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest
