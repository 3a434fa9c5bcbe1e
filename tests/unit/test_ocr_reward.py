"""The OCR reward: formula, prompt parsing, reading order, and RapidOCR itself on rendered words."""

import itertools
import math
import random

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from reward_api import Item, ItemError, Score
from reward_services.ocr.rapid import RapidReader
from reward_services.ocr.reader import TextLine, reading_order
from reward_services.ocr.reward import edit_distance, paper_reward, strict_reward, target_text
from reward_services.ocr.scorer import OcrScorer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('a sign that says "Open Now" and "Closed"', "Open Now"),
        ('"a"', "a"),
        ("a sign without text", None),
        ('a sign with one " quote', None),
        ('an empty "" quote', None),
        ('a blank "  " quote', None),
        ("a sign 'OPEN' in single quotes", None),
    ],
)
def test_the_target_stands_between_the_first_double_quotes(prompt: str, target: str | None) -> None:
    assert target_text(prompt) == target


@pytest.mark.parametrize(
    ("target", "recognised", "paper", "strict"),
    [
        ("OPEN", "open", 1.0, 1.0),
        ("Open Now", "o pennow", 1.0, 1.0),
        ("OPEN", "openopenopen", 1.0, 1 - 8 / 12),
        ("OPEN", "", 0.0, 0.0),
        ("OPEN", "opan", 0.75, 0.75),
        ("OPEN", "ope", 0.75, 0.75),
        ("OPEN", "completely else", 0.0, 1 - 11 / 14),
        ("OPEN", "xxxxxxxx", 0.0, 0.0),
        ("Caf\u00e9", "CAFE\u0301", 1.0, 1.0),
        ("Café", "Cafe", 0.75, 0.75),
        ("HELP!", "help\uff01", 1.0, 1.0),
        ("\u4f60\u597d", "\u4f60\u3000\u597d", 1.0, 1.0),
        ("你好", "你们", 0.5, 0.5),
    ],
)
def test_paper_and_strict_reward(target: str, recognised: str, paper: float, strict: float) -> None:
    assert paper_reward(target, recognised) == pytest.approx(paper)
    assert strict_reward(target, recognised) == pytest.approx(strict)


words = st.text("abc", max_size=6)


@given(words, words, words)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


@given(words.filter(bool), words)
def test_rewards_lie_between_zero_and_one_and_strict_is_never_kinder_than_containment(target: str, seen: str) -> None:
    assert 0.0 <= paper_reward(target, seen) <= 1.0
    assert 0.0 <= strict_reward(target, seen) <= 1.0
    if target in seen:
        assert paper_reward(target, seen) == 1.0
        assert (strict_reward(target, seen) == 1.0) == (target == seen)


def line(text: str, left: float, top: float, height: float = 10) -> TextLine:
    right, bottom = left + 20, top + height
    return TextLine(text, 1.0, ((left, top), (right, top), (right, bottom), (left, bottom)))


def test_reading_order_is_rows_then_columns() -> None:
    lines = [line("d", 5, 40), line("b", 60, 8), line("a", 10, 11), line("c", 40, 38)]
    assert [found.text for found in reading_order(lines)] == ["a", "b", "d", "c"]


def turned(lines: list[TextLine], degrees: float) -> list[TextLine]:
    """The page turned clockwise about its corner."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def move(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point
        return cosine * x - sine * y, sine * x + cosine * y

    return [TextLine(one.text, 1.0, tuple(move(point) for point in one.corners)) for one in lines]  # type: ignore[arg-type]


@pytest.mark.parametrize("degrees", [-60, -25, -8, 0, 8, 25, 60, 90])
def test_the_order_of_a_slanted_page_is_that_of_the_straight_one(degrees: float) -> None:
    # Three rows of words of 20 by 10, 15 apart, up to 3 off their row.
    places = itertools.product(range(3), range(3))
    words = [line(f"{row}{place}", 40 * place, 15 * row + 3 * ((row + place) % 2)) for row, place in places]
    shuffled = random.Random(0).sample(words, len(words))
    expected = [one.text for one in words]
    assert [one.text for one in reading_order(turned(shuffled, degrees))] == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], []),
        ([line("b", 30, 4), line("a", 0, 0)], ["a", "b"]),  # 6 of 10 shared: one row
        ([line("b", 0, 6), line("a", 30, 0)], ["a", "b"]),  # 4 of 10 shared: two rows
        # A tall word before two rows of small ones goes with the first of them.
        ([line("tall", 0, 0, 30), line("up", 40, 2), line("down", 40, 18)], ["tall", "up", "down"]),
    ],
)
def test_lines_share_a_row_by_half_of_the_lower_ones_height(lines: list[TextLine], expected: list[str]) -> None:
    assert [found.text for found in reading_order(lines)] == expected


class Shows:
    """A reader that sees given texts, one after the other."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def read(self, image: np.ndarray) -> list[TextLine]:
        return [line(word, 0, 20 * row) for row, word in enumerate(self.texts.pop(0).split())]


def blank(prompt: str, side: int = 32) -> Item:
    return Item(np.full((side, side, 3), 255, np.uint8), prompt)


def test_the_scorer_joins_lines_and_explains() -> None:
    (outcome,) = OcrScorer(reader=Shows("OPEN NOV")).score([blank('a sign "Open now"')])
    assert isinstance(outcome, Score)
    assert outcome.score == pytest.approx(1 - 1 / 7)
    assert outcome.details["target"] == "Open now"
    assert outcome.details["recognised"] == "OPENNOV"
    assert [found["text"] for found in outcome.details["lines"]] == ["OPEN", "NOV"]


def test_strict_is_an_option() -> None:
    for strict, expected in ((False, 1.0), (True, 0.5)):
        (outcome,) = OcrScorer(strict=strict, reader=Shows("AB AB")).score([blank('"AB"')])
        assert isinstance(outcome, Score)
        assert outcome.score == expected
    assert OcrScorer().version != OcrScorer(strict=True).version


def test_a_prompt_without_text_is_that_items_error() -> None:
    outcomes = OcrScorer(reader=Shows("A", "B")).score([blank('"A"'), blank("a cat"), blank('"B"')])
    assert [type(outcome) for outcome in outcomes] == [Score, ItemError, Score]
    assert isinstance(outcomes[1], ItemError)
    assert outcomes[1].code == "missing_text"
    assert "a cat" in outcomes[1].message


def sign(word: str, side: int, font_size: float) -> np.ndarray:
    image = Image.new("RGB", (side, side), (230, 220, 200))
    font = ImageFont.load_default(font_size)
    ImageDraw.Draw(image).text((side / 2, side / 2), word, font=font, fill=(20, 30, 90), anchor="mm")
    return np.asarray(image)


@pytest.fixture(scope="module")
def reader() -> RapidReader:
    reader = RapidReader()
    reader.read(sign("warm", 64, 20))
    return reader


WORDS = ("STOP", "OPEN", "HELLO", "SALE", "EXIT", "TAXI")


@pytest.mark.parametrize(("side", "font_size"), [(512, 90), (512, 36), (64, 20), (64, 14)])
def test_rendered_words_are_read(reader: RapidReader, side: int, font_size: float) -> None:
    items = [Item(sign(word, side, font_size), f'a sign that says "{word}"') for word in WORDS]
    scores = [o.score for o in OcrScorer(reader=reader).score(items) if isinstance(o, Score)]
    assert len(scores) == len(WORDS)
    assert np.mean(scores) >= 0.9


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (3, 200), (200, 3)])
def test_an_empty_image_reads_as_nothing(reader: RapidReader, shape: tuple[int, int]) -> None:
    (outcome,) = OcrScorer(reader=reader).score([Item(np.full((*shape, 3), 255, np.uint8), '"OPEN"')])
    assert isinstance(outcome, Score)
    assert (outcome.score, outcome.details["recognised"], outcome.details["lines"]) == (0.0, "", [])


def test_rows_spaces_accents_and_chinese_are_read_in_order(reader: RapidReader) -> None:
    image = np.full((512, 512, 3), 225, np.uint8)
    for text, left, bottom in (("Fête à midi", 40, 120), ("open", 40, 260), ("now", 300, 268), ("欢迎光临", 40, 420)):
        cv2.putText(image, text, (left, bottom), (30, 30, 30), cv2.FontFace("uni"), 60)
    (outcome,) = OcrScorer(strict=True, reader=reader).score(
        [Item(image, 'a wall with "Fête à midi open now 欢迎光临"')]
    )
    assert isinstance(outcome, Score)
    assert outcome.score == 1.0
    assert [found["text"].replace(" ", "") for found in outcome.details["lines"]] == [
        "Fêteàmidi",
        "open",
        "now",
        "欢迎光临",
    ]


def test_boxes_lie_on_the_text(reader: RapidReader) -> None:
    image = np.full((200, 400, 3), 255, np.uint8)
    image[120:180, 220:380] = sign("EXIT", 160, 50)[50:110]
    (found,) = reader.read(image)
    left, top, right, bottom = found.box
    assert 200 <= left < right <= 400
    assert 100 <= top < bottom <= 200
