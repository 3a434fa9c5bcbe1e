"""Signs: their words, their letters as drawn, and a model of shapes that learns to read them."""

import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_world
from reward_services.ocr.rapid import RapidReader
from tiny_world.letters import FONTS, LETTERS, ink
from tiny_world.pretrain import text
from tiny_world.pretrain.model import TEXT_LENGTH, clip_tokenizer, load, teach_words
from tiny_world.prompts import (
    SINGLE_LETTER,
    WORLDS,
    every_prompt,
    letter_rows,
    sign,
    split_words,
    unquoted_words,
    words,
)
from tiny_world.scenes import Letter, contents, misread, misspelt, names, render, sample_scene

pytestmark = pytest.mark.unit

SETS = Path(tiny_world.__file__).parent / "prompt_sets"
VOCABULARY = unquoted_words([sign("FOX"), *(prompt for world in WORLDS.values() for prompt in every_prompt(world))])


# Words


def test_quoted_text_is_one_token_a_letter(tmp_path: Path):
    tokenizer = clip_tokenizer(VOCABULARY, tmp_path)
    for word in [*words(), *letter_rows(300, VOCABULARY)]:
        tokens = tokenizer.tokenize(sign(word)["prompt"])
        letters = [*word[:-1].lower(), word[-1].lower() + "</w>"]
        assert tokens == ["a</w>", "sign</w>", "that</w>", "says</w>", '"</w>', *letters, '"</w>'], word
        assert len(tokens) + 2 <= TEXT_LENGTH


def test_letter_rows_leave_out_what_is_kept_back():
    rows = letter_rows(50, VOCABULARY)
    without = letter_rows(50, VOCABULARY, kept_back=rows[:3])
    assert without[:47] == rows[3:]
    assert len(without) == len(set(without)) == 50


def test_unquoted_words_leave_out_what_a_sign_says():
    assert unquoted_words([sign("FOX")]) == {"a", "sign", "that", "says"}


def test_words_are_three_or_four_capitals_and_come_once():
    assert len(set(words())) == len(words()) > 400
    assert {len(word) for word in words()} == {3, 4}
    assert set("".join(words())) == set(LETTERS)
    assert "FOX" in words()


def test_no_held_out_word_is_in_the_training_set():
    train, held_out = split_words()
    assert set(train) | set(held_out) == set(words())
    assert not set(train) & set(held_out)
    assert len(held_out) == len(words()) // 5
    assert split_words(seed=1) != split_words(seed=0)
    for label, expected in (("train", train), ("held_out", held_out)):
        lines = (SETS / f"signs_{label}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [sign(word) for word in expected]


# Drawing


def some_signs(count: int, seed: int = 0):
    rng = random.Random(seed)
    for word in rng.sample(words(), count):
        yield word, sample_scene(sign(word), WORLDS["small"], rng)


def test_a_sign_shows_its_letters_in_one_font_and_color_at_most_58_pixels_wide():
    fonts = Counter()
    for word, scene in some_signs(80):
        assert all(isinstance(thing, Letter) for thing in scene.objects)
        assert "".join(thing.letter for thing in scene.objects) == word
        assert len({(thing.font, thing.color, thing.rgb) for thing in scene.objects}) == 1
        fonts[scene.objects[0].font.name] += 1
        drawn = np.abs(render(scene).astype(int) - scene.ground).max(axis=2) > 12
        across = np.nonzero(drawn.any(axis=0))[0]
        assert across[-1] - across[0] < 58 + 3  # a slant leans out of the letters' boxes
        assert across[0] >= 1
        assert across[-1] <= 62
        if scene.objects[0].font.slant == 0:
            assert across[-1] - across[0] < 58
    assert set(fonts) == {font.name for font in FONTS}


@pytest.mark.parametrize("font", FONTS, ids=lambda font: font.name)
def test_no_two_letters_of_a_font_look_alike(font):
    drawn = {letter: ink(letter, font, 20, 20, 12.5 * font.width, 20, 64) for letter in LETTERS}
    for one, other in combinations(LETTERS, 2):
        differs = np.abs(drawn[one] - drawn[other]).sum() / max(drawn[one].sum(), drawn[other].sum())
        assert differs > 0.08, (one, other)


def test_ink_stays_in_the_letters_room():
    for font in FONTS:
        lean = font.slant * 20 / 2
        for letter in LETTERS.keys() - {"Q"}:  # its tail hangs out
            rows, columns = np.nonzero(ink(letter, font, 20, 20, 12.5 * font.width, 20, 64) > 0.3)
            assert rows.min() >= 19
            assert rows.max() <= 40
            assert columns.min() >= 19 - lean
            assert columns.max() <= 20 + 12.5 * font.width + lean


def test_a_reader_reads_them():
    reader = RapidReader()
    right = [
        "".join(line.text for line in reader.read(render(scene))).replace("0", "O") == word
        for word, scene in some_signs(60)
    ]
    assert np.mean(right) >= 0.95


def test_contents_name_the_letter_around_each_cells_middle():
    world = WORLDS["small"]
    [(word, scene)] = some_signs(1)
    cells = contents(scene, world, 16)
    first = names(world) - len(LETTERS)
    assert {"".join(LETTERS)[label - first] for label in np.unique(cells) if label} == set(word)
    for thing in scene.objects:
        assert cells[int(thing.cy // 4), int(thing.cx // 4)] == first + list(LETTERS).index(thing.letter)
    assert not cells[0].any()


# Captions with typos


def test_a_misspelt_text_keeps_its_length_and_differs_in_one_to_all_letters():
    rng = random.Random(0)
    wrong = Counter()
    for _ in range(300):
        found = misspelt("JUMP", rng)
        assert len(found) == 4
        assert set(found) <= set(LETTERS)
        wrong[sum(a != b for a, b in zip(found, "JUMP", strict=True))] += 1
    assert set(wrong) == {1, 2, 3, 4}


def test_typos_spare_the_letters_that_are_to_be_right():
    rng = random.Random(0)
    found = [misread(sign("JUMP"), WORLDS["small"], rng, right_letters=1)["text"] for _ in range(300)]
    assert {text[0] for text in found} == {"J"}
    assert {sum(a != b for a, b in zip(text, "JUMP", strict=True)) for text in found} == {1, 2, 3}


def test_a_single_letter_has_its_own_tag_and_no_typo():
    assert {sign(letter)["tag"] for letter in LETTERS} == {SINGLE_LETTER}
    assert {sign(word)["tag"] for word in words()} == {"sign"}
    assert all(misread(sign(letter), WORLDS["small"], random.Random(0)) == sign(letter) for letter in LETTERS)


def test_a_misread_sign_is_a_misspelt_one():
    before = sign("JUMP")
    wrong = misread(before, WORLDS["small"], random.Random(0))
    assert before == sign("JUMP")
    assert wrong["tag"] == "sign"
    assert wrong["text"] != "JUMP"


# A model of shapes learns the signs


def test_new_words_leave_known_prompts_as_they_are(tmp_path: Path):
    pipe = load(SETS.parent / "weights" / "small")
    texts = [prompt["prompt"] for prompt in every_prompt(WORLDS["small"])][::20]
    with torch.no_grad():
        before = text.embed(pipe, texts)
        teach_words(pipe, VOCABULARY, tmp_path)
        after = text.embed(pipe, texts)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-5)
    assert len(pipe.tokenizer.tokenize("heart")) == 1


def test_text_encoders_learn_letters_and_keep_what_is_known(tmp_path: Path):
    world = WORLDS["small"]
    pipe = load(SETS.parent / "weights" / "small")
    shapes = list(every_prompt(world))[::20]
    signs = [sign(word) for word in words()[:40]]
    texts = [prompt["prompt"] for prompt in shapes]
    teach_words(pipe, VOCABULARY, tmp_path)
    with torch.no_grad():
        before = text.embed(pipe, texts)
    known = dict(zip(texts, zip(*before, strict=True), strict=True))
    text.train(pipe, world, shapes + signs, steps=40, seed=0, known=known)
    with torch.no_grad():
        after = text.embed(pipe, texts)
    assert (after[0] - before[0]).square().mean().sqrt() < 0.25 * before[0].std()


def test_attributes_of_a_sign_are_its_letters():
    world = WORLDS["small"]
    assert text.attributes(sign("ABZ"), world) == [0] * 6 + [1, 2, 26, 0]
    assert text.attributes(next(iter(every_prompt(world))), world)[6:] == [0, 0, 0, 0]
