"""GenEval's metadata line and the six prompt templates."""

import math

import pytest

from reward_services.geneval.metadata import (
    BadMetadataError,
    NoTemplateError,
    Templates,
    check_vocabulary,
    read_metadata,
)
from tiny_world.prompts import WORLDS, every_prompt

pytestmark = pytest.mark.unit

COCO = Templates(("person", "cat", "bench", "bus", "traffic light", "orange", "hot dog", "dog", "toothbrush"))


@pytest.mark.parametrize("world", WORLDS)
def test_every_prompt_of_a_world_gives_its_metadata_back(world: str) -> None:
    templates = Templates(WORLDS[world].shapes, WORLDS[world].colors)
    for metadata in every_prompt(WORLDS[world]):
        assert templates.parse(metadata["prompt"]).line() == metadata
        assert read_metadata(metadata).line() == metadata


@pytest.mark.parametrize(
    ("prompt", "tag", "include"),
    [
        ("a photo of a bench", "single_object", [{"class": "bench", "count": 1}]),
        ("a photo of an orange", "single_object", [{"class": "orange", "count": 1}]),
        ("a photo of an orange orange", "colors", [{"class": "orange", "count": 1, "color": "orange"}]),
        (
            "A photo of  a hot dog and a dog.",
            "two_object",
            [{"class": "hot dog", "count": 1}, {"class": "dog", "count": 1}],
        ),
        ("a photo of four buses", "counting", [{"class": "bus", "count": 4}]),
        ("a photo of two benches", "counting", [{"class": "bench", "count": 2}]),
        ("a photo of two toothbrushs", "counting", [{"class": "toothbrush", "count": 2}]),
        (
            "a photo of a traffic light below a cat",
            "position",
            [{"class": "cat", "count": 1}, {"class": "traffic light", "count": 1, "position": ["below", 0]}],
        ),
        (
            "a photo of a black cat and an orange traffic light",
            "color_attr",
            [
                {"class": "cat", "count": 1, "color": "black"},
                {"class": "traffic light", "count": 1, "color": "orange"},
            ],
        ),
    ],
)
def test_prompts_over_coco_names(prompt: str, tag: str, include: list[dict[str, object]]) -> None:
    line = COCO.parse(prompt).line()
    assert (line["tag"], line["include"], line["prompt"]) == (tag, include, prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a photo of a unicorn",
        "a photo of cat",
        "a photo of five cats",
        "a photo of two cat",
        "a photo of a mauve cat",
        "a photo of a cat on a bench",
        "a photo of a cat and a cat",
        "a photo of a red cat and a blue cat",
        "a photo of a cat and a red dog",
        "a photo of a cat\nand a dog and a bus",
    ],
)
def test_other_prompts_are_refused_by_name(prompt: str) -> None:
    with pytest.raises(NoTemplateError) as refused:
        COCO.parse(prompt)
    assert repr(prompt) in str(refused.value)


CAT = {"class": "cat", "count": 1}
AFTER = {"class": "dog", "count": 1, "position": ["left of", 0]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"include": []}, "include"),
        ({"include": [{**CAT, "count": 0}]}, "include.0.count"),
        ({"include": [{**CAT, "count": 17}]}, "include.0.count"),
        ({"include": [{**CAT, "count": True}]}, "include.0.count"),
        ({"include": [{**CAT, "count": "2"}]}, "include.0.count"),
        ({"include": [{**CAT, "count": 2.0}]}, "include.0.count"),
        ({"include": [{**CAT, "count": math.nan}]}, "include.0.count"),
        ({"include": [{**CAT, "count": math.inf}]}, "include.0.count"),
        ({"include": [{**CAT, "color": "mauve"}]}, "include.0.color"),
        ({"include": [{**CAT, "size": "big"}]}, "include.0.size"),
        ({"include": [{"count": 1}]}, "include.0.class"),
        ({"include": [CAT, {**AFTER, "position": ["left of", math.nan]}]}, "include.1.position.1"),
        ({"include": [CAT, {**AFTER, "position": ["near", 0]}]}, "include.1.position.0"),
        ({"include": [CAT, {**AFTER, "position": ["left of", -1]}]}, "include.1.position.1"),
        ({"include": [CAT, {**AFTER, "position": ["left of", 1]}]}, "include.1.position"),
        ({"include": [AFTER, CAT]}, "include.0.position"),
        ({"include": [CAT, {**AFTER, "position": ["left of", 7]}]}, "clause 7"),
        ({"exclude": [{**CAT, "count": -1}]}, "exclude.0.count"),
        ({"exclude": [{**CAT, "color": "red"}]}, "exclude.0.color"),
        ({"tag": "count"}, "tag"),
        ({"weight": math.nan}, "weight"),
        ({"prompt": 3}, "prompt"),
    ],
)
def test_a_bad_line_is_refused_naming_the_field(change: dict[str, object], named: str) -> None:
    with pytest.raises(BadMetadataError) as refused:
        read_metadata({"tag": "two_object", "include": [CAT, AFTER], **change})
    assert named in str(refused.value)


def test_prompt_and_exclude_may_be_left_out() -> None:
    assert read_metadata({"tag": "two_object", "include": [CAT, AFTER]}).exclude == ()


def test_classes_and_colors_must_be_known() -> None:
    purple_cat = read_metadata({"tag": "colors", "include": [{**CAT, "color": "purple"}], "exclude": [CAT]})
    check_vocabulary(purple_cat, ("cat",), ("purple",))
    with pytest.raises(BadMetadataError, match=r"include\.0\.class: 'cat' is not among dog"):
        check_vocabulary(purple_cat, ("dog",), ("purple",))
    with pytest.raises(BadMetadataError, match=r"include\.0\.color: 'purple' is not among red, white"):
        check_vocabulary(purple_cat, ("cat",), ("red", "white"))
    no_dog = read_metadata({"tag": "colors", "include": [CAT], "exclude": [{"class": "dog", "count": 1}]})
    with pytest.raises(BadMetadataError, match=r"exclude\.0\.class"):
        check_vocabulary(no_dog, ("cat",), ())
