"""How many single letters a small world's model draws right: ``a sign that says "A"``, letter by letter.

    python -m benchmarks.single_letters tiny_world/weights/signs [--count 8] [--out letters.png]

A text reader is made for words and finds nothing in many a lone letter. Here a picture shows the letter whose drawing,
in any font and at any place, correlates most with its ink, and none below LEAST. Rendered letters are judged first, to
say how far that can be trusted.
"""

import argparse
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiny_world.flaws import clean
from tiny_world.letters import FONTS, LETTERS, ink
from tiny_world.prompts import WORLDS, sign
from tiny_world.scenes import letter_size
from trainer.config import LoraSettings, ModelConfig
from trainer.draws import key
from trainer.models.sd3 import SD3
from trainer.rollout import sample

WORLD = WORLDS["small"]
STEPS = 10
LEAST = 0.7
"""Correlation of a letter with its drawing below which it is not one."""

Picture = NDArray[np.uint8]
Ink = NDArray[np.float32]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the shares recognised, of rendered letters and of the model's, and what each letter was taken for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.single_letters")
    parser.add_argument("model", help="a pipeline's folder")
    parser.add_argument("--count", type=int, default=8, help="pictures of each letter (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a PNG of the model's letters, a row each")
    options = parser.parse_args(argv)

    drawings = every_drawing()
    rng = random.Random(options.seed)
    rendered = {letter: [clean(sign(letter), WORLD, rng) for _ in range(options.count)] for letter in LETTERS}
    report("rendered", rendered, drawings)
    drawn = letters_of(options.model, options.count, options.seed)
    report(options.model, drawn, drawings)
    if options.out:
        Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in drawn.values()])).save(options.out)


def letters_of(path: str, count: int, seed: int) -> dict[str, list[Picture]]:
    """The model's pictures of each letter: the ODE, ten second-order steps, no guidance."""
    model = SD3(ModelConfig(path=path, resolution=WORLD.size, max_sequence_length=1), LoraSettings(), seed)
    found = {}
    for letter in LETTERS:
        text = model.encode([sign(letter)["prompt"]] * count)
        keys = [key(seed, "single letters", letter, index) for index in range(count)]
        found[letter] = list(sample(model, text, None, keys, STEPS, 1.0, "ab2"))
    return found


def every_drawing() -> list[tuple[str, Ink]]:
    """Each letter in each font, as signs show it: its name and its ink, cropped to it."""
    drawings = []
    size = WORLD.size
    for letter, font in itertools.product(LETTERS, FONTS):
        width, height = letter_size(font)
        alpha = ink(letter, font, (size - width) / 2, (size - height) / 2, width, height, size)
        rows, columns = np.nonzero(alpha)
        drawings.append((letter, alpha[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]))
    return drawings


def recognised(picture: Picture, drawings: Sequence[tuple[str, Ink]]) -> str:
    """The letter an RGB picture shows, or an empty string."""
    ground = np.median(picture.reshape(-1, 3), axis=0)
    seen = np.linalg.norm(picture - ground, axis=-1).astype(np.float32)
    best, letter = max((correlation(seen, alpha), letter) for letter, alpha in drawings)
    return letter if best >= LEAST else ""


def correlation(seen: Ink, alpha: Ink) -> float:
    """Pearson's, over all pixels of the picture, with the drawing at its best place and empty ground around it."""
    pixels = seen.size
    together = cv2.matchTemplate(seen, alpha, cv2.TM_CCORR).max() / pixels - seen.mean() * alpha.sum() / pixels
    spread = np.square(alpha).sum() / pixels - np.square(alpha.sum() / pixels)
    return float(together / (seen.std() * np.sqrt(spread) + 1e-9))


def report(title: str, pictures: dict[str, list[Picture]], drawings: Sequence[tuple[str, Ink]]) -> None:
    read = {letter: Counter(recognised(picture, drawings) for picture in same) for letter, same in pictures.items()}
    right = sum(found[letter] for letter, found in read.items())
    total = sum(found.total() for found in read.values())
    print(f"{title}: {right} of {total} right, {right / total:.3f}")
    for letter, found in read.items():
        if wrong := {other or "nothing": count for other, count in found.items() if other != letter}:
            print(f"  {letter} was taken for", ", ".join(f"{other} ({count})" for other, count in wrong.items()))


if __name__ == "__main__":
    main()
