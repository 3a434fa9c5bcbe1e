"""GenEval as a scorer: from image and prompt to score, details and errors."""

import json
import random
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reward_api import ErrorCode, Item, ItemError, Score
from reward_services.geneval.detector import Detection
from reward_services.geneval.metadata import read_metadata
from reward_services.geneval.scorer import GenEvalScorer
from reward_services.geneval.verdict import by_class, evaluate
from tiny_world.prompts import TASKS, WORLDS, World, colors, counting, every_prompt, position, single_object
from tiny_world.scenes import Scene, render, sample_scene

pytestmark = pytest.mark.unit

FULL = WORLDS["full"]
PICTURES = 600


def drawn(metadata: dict[str, Any], world: World = FULL, seed: int = 0) -> NDArray[np.uint8]:
    return render(sample_scene(metadata, world, random.Random(seed)))


def only(outcomes: list[Any]) -> Score:
    (outcome,) = outcomes
    assert isinstance(outcome, Score), outcome
    return outcome


def true_verdict(scene: Scene, metadata: dict[str, Any]) -> bool:
    mask = np.zeros((1, 1), dtype=bool)
    things = [Detection(thing.shape, 1.0, thing.box, mask) for thing in scene.objects]
    color = {id(d): thing.color for d, thing in zip(things, scene.objects, strict=True)}
    return evaluate(by_class(things), read_metadata(metadata), lambda d: color[id(d)]).correct


@pytest.mark.parametrize("blurred", [False, True], ids=["clean", "decoded"])
@pytest.mark.parametrize("name", WORLDS)
def test_rendered_prompts_are_judged_correct(name: str, blurred: bool) -> None:
    world, rng, noise = WORLDS[name], random.Random(11), np.random.default_rng(11)
    prompts = {task: [m for m in every_prompt(world) if m["tag"] == task] for task in TASKS}
    scorer = GenEvalScorer(world=name)
    by_scene, by_detector, full = 0, Counter[str](), 0
    for index in range(PICTURES):
        metadata = rng.choice(prompts[TASKS[index % len(TASKS)]])
        scene = sample_scene(metadata, world, rng)
        picture = render(scene)
        if blurred:
            soft = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.7) + noise.normal(0, 6, picture.shape)
            picture = np.clip(np.round(soft), 0, 255).astype(np.uint8)
        outcome = only(scorer.score([Item(picture, metadata["prompt"])]))
        by_scene += true_verdict(scene, metadata)
        by_detector[metadata["tag"]] += outcome.details["correct"]
        full += outcome.score == 1
    assert by_scene == PICTURES
    assert by_detector.total() >= 0.995 * PICTURES, by_detector
    assert full >= 0.995 * PICTURES


def test_details_say_why_and_are_json() -> None:
    picture = drawn(colors("ring", "red"))
    score = only(GenEvalScorer().score([Item(picture, "a photo of a blue ring")]))
    details = json.loads(json.dumps(score.details, allow_nan=False))
    assert score.score == 0.5
    assert (details["correct"], details["tag"]) == (False, "colors")
    assert details["reason"] == "expected 1 blue ring, found red"
    (ring,) = details["detections"]
    assert (ring["class"], ring["color"]) == ("ring", "red")
    assert ring["score"] > 0.9
    assert len(ring["box"]) == 4
    assert details["terms"][1] == {"class": "ring", "asked": "color", "value": 0.0}


def test_color_is_told_only_where_it_was_asked() -> None:
    score = only(GenEvalScorer().score([Item(drawn(single_object("moon")), "a photo of a moon")]))
    assert "color" not in score.details["detections"][0]


def test_metadata_goes_before_the_prompt() -> None:
    metadata = single_object("moon")
    score = only(GenEvalScorer().score([Item(drawn(metadata), "the moon, in oil", metadata)]))
    assert score.score == 1


def test_modes_and_compat() -> None:
    shown, asked = position("star", "above", "heart"), "a photo of a star below a heart"
    items = [Item(drawn(shown), asked)]
    assert only(GenEvalScorer().score(items)).score == pytest.approx(2 / 3)
    assert only(GenEvalScorer(compat="flow_grpo").score(items)).score == 0.75
    assert only(GenEvalScorer(mode="official").score(items)).score == 0.0
    assert only(GenEvalScorer(mode="official").score([Item(drawn(shown), shown["prompt"])])).score == 1.0


def test_official_mode_lets_more_pass_where_the_reward_counts() -> None:
    items = [Item(drawn(counting("star", 3)), "a photo of a star")]
    official, graded = (only(GenEvalScorer(mode=mode).score(items)) for mode in ("official", "reward"))
    assert (official.score, graded.score) == (1.0, 0.0)
    assert graded.details["correct"] is True


def test_each_item_has_its_own_error() -> None:
    picture = drawn(single_object("star"))
    outcomes = GenEvalScorer(world="small").score(
        [
            Item(picture, "a photo of a circle"),
            Item(picture, "a photo of a dog"),
            Item(picture, " "),
            Item(picture, "", {"tag": "colors", "include": [{"class": "circle", "count": float("nan")}]}),
            Item(picture, "", {"tag": "single_object", "include": [{"class": "star", "count": 1}]}),
            Item(picture, "", {}),
            Item(picture, "a photo of a square"),
        ]
    )
    codes = [outcome.code if isinstance(outcome, ItemError) else "score" for outcome in outcomes]
    assert codes == [
        "score",
        ErrorCode.MISSING_METADATA,
        ErrorCode.MISSING_PROMPT,
        ErrorCode.BAD_METADATA,
        ErrorCode.BAD_METADATA,
        ErrorCode.BAD_METADATA,
        "score",
    ]
    errors = [outcome.message for outcome in outcomes if isinstance(outcome, ItemError)]
    assert "'a photo of a dog'" in errors[0]
    assert "include.0.count" in errors[2]
    assert "'star' is not among circle, square, triangle, cross" in errors[3]


def test_scores_do_not_depend_on_the_batch() -> None:
    rng, scorer = random.Random(2), GenEvalScorer()
    asked = rng.sample(list(every_prompt(FULL)), 8)
    items = [Item(render(sample_scene(rng.choice(asked), FULL, rng)), m["prompt"], m) for m in asked]
    assert scorer.score(items) == [only(scorer.score([item])) for item in items]
    assert scorer.score([]) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"detector": "yolo"}, "detector='yolo'"),
        ({"world": "large"}, "world='large'"),
        ({"mode": "strict"}, "mode='strict'"),
        ({"compat": "paper"}, "compat='paper'"),
        ({"mode": "official", "compat": "flow_grpo"}, "compat='flow_grpo'"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        GenEvalScorer(**options)


def test_a_warm_scorer_tells_its_range() -> None:
    scorer = GenEvalScorer(compat="flow_grpo")
    scorer.warm_up()
    assert (scorer.name, scorer.low, scorer.high, scorer.batch_invariant) == ("geneval", -14.0, 1.0, True)
