"""The generator against the parser of the reward service, which was written from the benchmark's templates."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_services.geneval.coco import CLASSES as SERVICE_CLASSES
from reward_services.geneval.metadata import COLORS as SERVICE_COLORS
from reward_services.geneval.metadata import Templates, read_metadata
from trainer.geneval_prompts import CLASSES, COLORS, FAMILIES, TRAINING_MIX, apportion, generate
from trainer.make_prompts import main, pictures_of
from trainer.prompt_records import PromptError

pytestmark = pytest.mark.unit

EVEN = dict.fromkeys(FAMILIES, 1)

# Lines of the official test set, one or two a task.
OFFICIAL: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "orange", "count": 1}], "prompt": "a photo of an orange"},
    {
        "tag": "two_object",
        "include": [{"class": "bowl", "count": 1}, {"class": "skis", "count": 1}],
        "prompt": "a photo of a bowl and a skis",
    },
    {
        "tag": "counting",
        "include": [{"class": "wine glass", "count": 2}],
        "exclude": [{"class": "wine glass", "count": 3}],
        "prompt": "a photo of two wine glasses",
    },
    {
        "tag": "counting",
        "include": [{"class": "bench", "count": 4}],
        "exclude": [{"class": "bench", "count": 5}],
        "prompt": "a photo of four benchs",
    },
    {
        "tag": "colors",
        "include": [{"class": "tv", "count": 1, "color": "orange"}],
        "prompt": "a photo of an orange tv",
    },
    {
        "tag": "position",
        "include": [{"class": "orange", "count": 1}, {"class": "carrot", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a carrot left of an orange",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "surfboard", "count": 1, "color": "green"},
            {"class": "oven", "count": 1, "color": "orange"},
        ],
        "prompt": "a photo of a green surfboard and an orange oven",
    },
]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def every(task: str) -> list[dict[str, Any]]:
    return [FAMILIES[task].at(index) for index in range(FAMILIES[task].size)]


def test_the_vocabulary_is_that_of_the_reward_service():
    assert len(set(CLASSES)) == 80
    assert CLASSES == SERVICE_CLASSES
    assert COLORS == SERVICE_COLORS


@pytest.mark.parametrize(
    ("task", "size"),
    [
        ("single_object", 80),
        ("two_object", 80 * 79),
        ("counting", 80 * 3),
        ("colors", 79 * 10),
        ("position", 80 * 79 * 4),
    ],
)
def test_a_family_holds_every_prompt_of_its_task_once(task: str, size: int):
    prompts = every(task)
    assert len({prompt["prompt"] for prompt in prompts}) == len(prompts) == size
    assert {prompt["tag"] for prompt in prompts} == {task}


def test_color_attribution_pairs_different_things_in_different_colors():
    family = FAMILIES["color_attr"]
    assert family.size == 79 * 78 * 10 * 9
    for index in range(0, family.size, 997):
        one, two = family.at(index)["include"]
        assert one["class"] != two["class"]
        assert one["color"] != two["color"]
    ends = [family.at(index)["prompt"] for index in (0, family.size - 1)]
    assert ends == [
        "a photo of a red bicycle and an orange car",
        "a photo of a white toothbrush and a black hair drier",
    ]


def test_every_generated_prompt_is_parsed_back_to_its_metadata():
    templates = Templates(CLASSES)
    prompts = [prompt for task in ("single_object", "counting", "colors") for prompt in every(task)]
    prompts += generate(3000, seed=5, mix=EVEN)
    for line in prompts:
        assert templates.parse(line["prompt"]).line() == read_metadata(line).line() == line


@pytest.mark.parametrize("line", OFFICIAL, ids=lambda line: line["tag"])
def test_official_lines_are_among_the_generated_ones(line: dict[str, Any]):
    family = FAMILIES[line["tag"]]
    if line["tag"] != "color_attr":
        assert line in every(line["tag"])
    else:  # half a million: look where it must be
        colored = [name for name in CLASSES if name != "person"]
        first, second = (colored.index(clause["class"]) for clause in line["include"])
        one, two = (COLORS.index(clause["color"]) for clause in line["include"])
        pair = first * 78 + second - (second > first)
        assert family.at(pair * 90 + one * 9 + two - (two > one)) == line


def test_nobody_is_colored():
    lines = generate(4000, seed=0, mix={"colors": 1, "color_attr": 1})
    assert not any("person" in line["prompt"] for line in lines)
    assert any("person" in line["prompt"] for line in generate(500, seed=0, mix={"two_object": 1, "position": 1}))


# How many of what


def test_the_training_mix_is_the_papers():
    counts = Counter(line["tag"] for line in generate(1700, seed=0))
    assert counts == {"position": 700, "counting": 500, "color_attr": 300, "colors": 100, "two_object": 100}
    assert TRAINING_MIX["single_object"] == 0


@given(
    st.integers(1, 100_000),
    st.dictionaries(st.sampled_from(list(FAMILIES)), st.integers(0, 9), min_size=1).filter(lambda m: sum(m.values())),
)
def test_shares_add_up_and_are_at_most_one_off(count: int, mix: dict[str, float]):
    parts = apportion(count, mix)
    assert sum(parts.values()) == count
    assert all(abs(parts[task] - count * share / sum(mix.values())) < 1 for task, share in mix.items())


def test_a_prompt_comes_again_only_after_all_others():
    counts = Counter(line["prompt"] for line in generate(1000, seed=0, mix={"counting": 1}))
    assert len(counts) == 240
    assert set(counts.values()) == {4, 5}


def test_the_seed_decides():
    first = generate(500, seed=3)
    assert generate(500, seed=3) == first
    assert generate(500, seed=4) != first


def test_tasks_are_mixed_and_not_in_blocks():
    tags = [line["tag"] for line in generate(1700, seed=0)]
    changes = sum(one != two for one, two in itertools.pairwise(tags))
    assert changes > 1000


# Held out


def asks_for(line: dict[str, Any]) -> frozenset[Any]:
    """What a picture must show, written apart from ``tiny_world.prompts.picture_key``: facts that know no order."""
    things = [(clause["count"], clause.get("color"), clause["class"]) for clause in line["include"]]
    if line["tag"] != "position":
        return frozenset(things)
    other, thing = line["include"]
    flipped = {"right of": ("left of", True), "below": ("above", True)}
    relation, flip = flipped.get(thing["position"][0], (thing["position"][0], False))
    pair = (other["class"], thing["class"]) if flip else (thing["class"], other["class"])
    return frozenset([relation, pair])


def test_no_training_prompt_asks_for_a_held_out_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    held_out, train = tmp_path / "held_out.jsonl", tmp_path / "train.jsonl"
    mix = ",".join(f"{task}=1" for task in FAMILIES)
    assert main(["geneval", "--count", "480", "--mix", mix, "--seed", "1", "--out", str(held_out)]) == 0
    assert main(["geneval", "--count", "40000", "--exclude", str(held_out), "--out", str(train)]) == 0
    kept_back = {asks_for(json.loads(line)) for line in held_out.read_text().splitlines()}
    lines = [json.loads(line) for line in train.read_text().splitlines()]
    assert len(lines) == 40_000
    assert not kept_back & {asks_for(line) for line in lines}
    # Without the exclusion the two would meet.
    assert kept_back & {asks_for(line) for line in generate(40_000, seed=0)}
    assert "position" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("held_out", "mirror"),
    [
        ("a photo of a dog and a cat", "a photo of a cat and a dog"),
        ("a photo of a dog left of a cat", "a photo of a cat right of a dog"),
        ("a photo of a dog below a cat", "a photo of a cat above a dog"),
        ("a photo of a red dog and a blue cat", "a photo of a blue cat and a red dog"),
    ],
)
def test_the_same_picture_in_the_other_order_is_excluded_too(tmp_path: Path, held_out: str, mirror: str):
    templates = Templates(CLASSES)
    keys = {name: pictures_of(Path(write(tmp_path / "x.jsonl", [templates.parse(name).line()]))) for name in
            (held_out, mirror)}  # fmt: skip
    assert keys[held_out] == keys[mirror]


def test_what_differs_is_not_excluded(tmp_path: Path):
    templates = Templates(CLASSES)
    different = [
        "a photo of a dog left of a cat",
        "a photo of a cat left of a dog",
        "a photo of a dog above a cat",
        "a photo of a dog and a cat",
        "a photo of a red dog and a blue cat",
        "a photo of a blue dog and a red cat",
        "a photo of a dog",
        "a photo of two dogs",
        "a photo of a red dog",
    ]
    path = Path(write(tmp_path / "x.jsonl", [templates.parse(prompt).line() for prompt in different]))
    assert len(pictures_of(path)) == len(different)


# Faults


def test_a_task_with_nothing_left_is_named(tmp_path: Path):
    everything = pictures_of(Path(write(tmp_path / "x.jsonl", every("counting"))))
    with pytest.raises(PromptError, match="all 240 prompts of the task counting are excluded"):
        generate(100, seed=0, exclude=everything)


def test_an_excluded_line_that_is_no_metadata_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "x.jsonl", [OFFICIAL[0], {"prompt": "a cat", "tag": "position", "include": [3]}])
    assert main(["geneval", "--count", "5", "--exclude", path, "--out", str(tmp_path / "out.jsonl")]) == 1
    assert f"{path}, line 2: is not one of GenEval's metadata lines" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("mix", ["flying=1", "counting", "counting=many", "counting=inf"])
def test_a_mix_that_is_none_is_wrong_usage(tmp_path: Path, mix: str):
    with pytest.raises(SystemExit) as ended:
        main(["geneval", "--count", "5", "--mix", mix, "--out", str(tmp_path / "x.jsonl")])
    assert ended.value.code == 2


def test_an_empty_mix_and_an_absent_folder_are_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["geneval", "--count", "5", "--mix", "counting=0", "--out", str(tmp_path / "x.jsonl")]) == 1
    assert main(["geneval", "--count", "5", "--out", str(tmp_path / "absent" / "x.jsonl")]) == 1
    empty, absent = capsys.readouterr().err.splitlines()
    assert "not all 0" in empty
    assert "absent" in absent
    assert "cannot be written" in absent
