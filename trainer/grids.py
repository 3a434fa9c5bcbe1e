"""Sheets of sample images with prompt and score under each."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_CELL = 128
_CAPTION = 40
_GAP = 6


@dataclass(frozen=True)
class Sample:
    """A picture (H, W, 3) uint8, its prompt, and a score to print, if there is one."""

    image: NDArray[np.uint8]
    prompt: str
    score: float | None


def grid(samples: Sequence[Sample], columns: int = 8) -> Image.Image:
    """One sheet, ``columns`` pictures a row."""
    rows = -(-len(samples) // columns)
    sheet = Image.new(
        "RGB", (columns * (_CELL + _GAP) + _GAP, rows * (_CELL + _CAPTION + _GAP) + _GAP), (250, 250, 250)
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=10)
    for index, sample in enumerate(samples):
        x = _GAP + (index % columns) * (_CELL + _GAP)
        y = _GAP + (index // columns) * (_CELL + _CAPTION + _GAP)
        picture = Image.fromarray(sample.image)
        nearest = picture.width < _CELL
        method = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
        sheet.paste(picture.resize((_CELL, _CELL), method), (x, y))
        score = "no score" if sample.score is None else f"{sample.score:.2f}"
        lines = textwrap.wrap(sample.prompt, 24)[:2]
        draw.multiline_text((x, y + _CELL + 1), "\n".join(lines), fill=(60, 60, 60), font=font, spacing=1)
        draw.text((x + _CELL - 2, y + _CELL + 27), score, fill=(20, 80, 160), font=font, anchor="ra")
    return sheet


def save_grid(samples: Sequence[Sample], path: Path, columns: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(samples, columns).save(path)
