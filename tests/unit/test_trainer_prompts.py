import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_world
from trainer.config import PromptSource
from trainer.prompt_records import PromptError
from trainer.prompts import Prompt, PromptMix, load_prompts

pytestmark = pytest.mark.unit

LINES = [
    {"tag": "counting", "include": [{"class": "ring", "count": 2}], "prompt": "a photo of two rings"},
    {"tag": "counting", "include": [{"class": "ring", "count": 3}], "prompt": "a photo of three rings"},
    {"tag": "colors", "include": [{"class": "ring", "count": 1, "color": "red"}], "prompt": "a photo of a red ring"},
]


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def source(path: str, **settings: Any) -> PromptSource:
    return PromptSource(**({"path": path, "rewards": {"geneval": 1.0}} | settings))


# Reading


def test_jsonl_gives_text_metadata_and_task(tmp_path: Path):
    prompts = load_prompts(source(write(tmp_path / "a.jsonl", LINES), rewards={"geneval": 0.5, "ocr": 1.0}))
    assert [prompt.text for prompt in prompts] == [line["prompt"] for line in LINES]
    assert [prompt.tag for prompt in prompts] == ["counting", "counting", "colors"]
    assert prompts[2].metadata == LINES[2]
    assert prompts[0].rewards == {"geneval": 0.5, "ocr": 1.0}


def test_a_line_with_a_prompt_alone_has_no_metadata(tmp_path: Path):
    [prompt] = load_prompts(source(write(tmp_path / "a.jsonl", [{"prompt": 'a sign that says "open"'}])))
    assert prompt.metadata is None
    assert prompt.tag == "prompt"


def test_text_gives_a_prompt_a_line(tmp_path: Path):
    prompts = load_prompts(source(write(tmp_path / "a.txt", ["  a cat ", "", "{not json}", "   "])))
    assert [(prompt.text, prompt.metadata) for prompt in prompts] == [("a cat", None), ("{not json}", None)]


def test_prompts_need_not_be_ascii(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("ein schönes Bild\n", encoding="utf-8")
    assert load_prompts(source(str(path)))[0].text == "ein schönes Bild"


def test_the_packages_own_prompts_are_found_by_name():
    assert tiny_world.resolve("tiny_world:prompts/a.jsonl") == Path(tiny_world.__file__).parent / "prompts" / "a.jsonl"
    assert tiny_world.resolve("some/where.txt") == Path("some/where.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: is not a JSON object"),
        ({"tag": "colors"}, 'line 2: needs a non-empty "prompt"'),
        ({"prompt": ""}, 'line 2: needs a non-empty "prompt"'),
        ({"prompt": 3}, 'line 2: needs a non-empty "prompt"'),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path: Path, line: Any, message: str):
    path = write(tmp_path / "a.jsonl", [LINES[0], line])
    with pytest.raises(PromptError, match=message) as caught:
        load_prompts(source(path))
    assert str(caught.value).startswith(f"{path}, line 2")


def test_blank_lines_count_in_line_numbers(tmp_path: Path):
    with pytest.raises(PromptError, match="line 3"):
        load_prompts(source(write(tmp_path / "a.jsonl", [LINES[0], "", "{"])))


def test_a_file_that_is_empty_or_not_there_is_named(tmp_path: Path):
    with pytest.raises(PromptError, match=r"a\.txt: holds no prompt"):
        load_prompts(source(write(tmp_path / "a.txt", ["", " "])))
    with pytest.raises(PromptError, match=r"b\.txt: cannot be read \(No such file"):
        load_prompts(source(str(tmp_path / "b.txt")))


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(PromptError, match=r"a\.txt: is not UTF-8"):
        load_prompts(source(str(path)))


def test_only_a_newline_ends_a_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one\u2028line"}\r\n', encoding="utf-8")
    assert [prompt.text for prompt in load_prompts(source(str(path)))] == ["one\u2028line"]


def test_a_tag_weight_without_prompts_is_named(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", LINES)
    with pytest.raises(PromptError, match="tags no prompt has: position, two_object"):
        load_prompts(source(path, tag_weights={"counting": 1, "two_object": 1, "position": 7}))


# Drawing


def test_an_epochs_prompts_depend_on_seed_and_epoch_alone(tmp_path: Path):
    sources = [source(write(tmp_path / "a.txt", [f"prompt {n}" for n in range(1000)]))]
    mix = PromptMix(sources, seed=3)
    fifth = mix.epoch(5, 20)
    assert mix.epoch(5, 20) == fifth == PromptMix(sources, seed=3).epoch(5, 20)
    assert mix.epoch(6, 20) != fifth != PromptMix(sources, seed=4).epoch(5, 20)
    assert mix.epoch(5, 8) == fifth[:8]


def test_sources_are_drawn_by_weight_and_keep_their_rewards(tmp_path: Path):
    words = source(write(tmp_path / "a.txt", ["a"]), rewards={"ocr": 1.0}, weight=3)
    pictures = source(write(tmp_path / "b.txt", ["b"]), rewards={"pickscore": 0.5, "geneval": 1.0}, weight=1)
    drawn = PromptMix([words, pictures], seed=0).epoch(0, 4000)
    counts = Counter(prompt.text for prompt in drawn)
    assert counts["a"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert {tuple(prompt.rewards) for prompt in drawn if prompt.text == "a"} == {("ocr",)}
    assert {tuple(prompt.rewards) for prompt in drawn if prompt.text == "b"} == {("pickscore", "geneval")}


def test_tag_weights_set_each_tasks_share_whatever_its_number_of_prompts(tmp_path: Path):
    many = [{"prompt": f"count {n}", "tag": "counting"} for n in range(90)]
    lines = [*many, {"prompt": "red", "tag": "colors"}, {"prompt": "one", "tag": "single_object"}]
    mix = PromptMix([source(write(tmp_path / "a.jsonl", lines), tag_weights={"counting": 1, "colors": 3})], seed=0)
    counts = Counter(prompt.tag for prompt in mix.epoch(0, 4000))
    assert counts["colors"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert counts["single_object"] == 0


def test_without_tag_weights_every_prompt_is_as_likely(tmp_path: Path):
    mix = PromptMix([source(write(tmp_path / "a.jsonl", LINES))], seed=0)
    counts = Counter(prompt.text for prompt in mix.epoch(0, 3000))
    assert all(count == pytest.approx(1000, abs=120) for count in counts.values())
    assert len(counts) == 3


def focused(tmp_path: Path, texts: list[str], **settings: Any) -> tuple[PromptMix, dict[str, Prompt]]:
    path = write(tmp_path / "focus.txt", texts)
    mix = PromptMix([source(path, **settings)], seed=0)
    return mix, {prompt.text: prompt for prompt in load_prompts(source(path, **settings))}


def shares(mix: PromptMix) -> dict[str, float]:
    return {text: count / 6000 for text, count in Counter(prompt.text for prompt in mix.epoch(0, 6000)).items()}


def test_focus_draws_prompts_by_the_spread_of_their_groups(tmp_path: Path):
    mix, prompts = focused(tmp_path, ["solved", "open", "new"], focus=0.8)
    assert shares(mix) == pytest.approx(dict.fromkeys(prompts, 1 / 3), abs=0.03)
    mix.learn([prompts["solved"], prompts["open"]], np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]]))
    # Spreads 0 and .5, mean .25: weights .2, 1.8, and 1 for the prompt not drawn yet.
    assert shares(mix) == pytest.approx({"solved": 0.2 / 3, "open": 1.8 / 3, "new": 1 / 3}, abs=0.03)


def test_focus_forgets_by_half_and_leaves_missing_rewards_out(tmp_path: Path):
    mix, prompts = focused(tmp_path, ["a", "b"], focus=0.5)
    both = [prompts["a"], prompts["b"]]
    mix.learn(both, np.array([[0.0, 4.0, np.nan], [2.0, 2.0, 2.0]]))
    mix.learn(both, np.array([[1.0, 1.0, 1.0], [np.nan, np.nan, 7.0]]))
    assert mix.state == [{"a": 1.0, "b": 0.0}]


def test_without_focus_nothing_is_learned(tmp_path: Path):
    mix, prompts = focused(tmp_path, ["a", "b"])
    mix.learn([prompts["a"]], np.array([[0.0, 1.0]]))
    assert mix.state == [{}]


def test_where_all_is_solved_focus_draws_evenly(tmp_path: Path):
    mix, prompts = focused(tmp_path, ["a", "b"], focus=0.9)
    mix.learn(list(prompts.values()), np.ones((2, 3)))
    assert shares(mix) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.03)
