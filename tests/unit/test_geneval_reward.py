"""GenEval's RL reward, ours and the reference's, against numbers computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_services.geneval.detector import Detection
from reward_services.geneval.metadata import COLORS, RELATIONS, Metadata, read_metadata
from reward_services.geneval.reward import reward
from reward_services.geneval.verdict import by_class, evaluate

pytestmark = pytest.mark.unit

MASK = np.zeros((1, 1), dtype=bool)
Boxes = list[tuple[str, str, tuple[float, float, float, float]]]
HERE, LEFT, RIGHT = (40, 0, 50, 10), (0, 0, 10, 10), (80, 0, 90, 10)


def scores(metadata: Metadata, things: Boxes) -> tuple[float, float]:
    """(ours, flow_grpo) for things given as (class, color, box), all of confidence .95."""
    detections = [Detection(label, 0.95, box, MASK) for label, _, box in things]
    colors = {id(d): color for d, (_, color, _) in zip(detections, things, strict=True)}

    def color_of(detection: Detection) -> str:
        return colors[id(detection)]

    groups = by_class(detections)
    return reward(groups, metadata, color_of).score, reward(groups, metadata, color_of, compat="flow_grpo").score


def cats(number: int, color: str = "red") -> Boxes:
    return [("cat", color, HERE)] * number


COUNTING = {
    "tag": "counting",
    "include": [{"class": "cat", "count": 3}],
    "exclude": [{"class": "cat", "count": 4}],
}
SINGLE = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
PAIR = {"tag": "two_object", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]}
RED_CAT = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]}
RED_CATS = {"tag": "colors", "include": [{"class": "cat", "count": 3, "color": "red"}]}
POSITION = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
}
ATTRIBUTES = {
    "tag": "color_attr",
    "include": [
        {"class": "cat", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "color": "blue"},
    ],
}
BOTH = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "color": "red", "position": ["left of", 0]}],
}
NO_DOG = {
    "tag": "single_object",
    "include": [{"class": "cat", "count": 1}],
    "exclude": [{"class": "dog", "count": 1}],
}
FEW_DOGS = {**NO_DOG, "exclude": [{"class": "dog", "count": 3}]}
CONTRADICTION = {**SINGLE, "exclude": [{"class": "cat", "count": 1}]}
DOG = ("dog", "blue", HERE)


@pytest.mark.parametrize(
    ("metadata", "things", "ours", "theirs"),
    [
        (COUNTING, cats(3), 1, 1),
        (COUNTING, cats(2), 2 / 3, 2 / 3),
        (COUNTING, cats(5), 1 / 3, 1 / 3),
        (COUNTING, [], 0, 0),
        (COUNTING, cats(7), 0, -1 / 3),  # 1 - 4/3
        (SINGLE, cats(16), 0, -14),
        (SINGLE, cats(40), 0, -14),  # only sixteen are looked at
        (PAIR, cats(1), 0.5, 0.5),
        (PAIR, [*cats(3), DOG], 0.5, 0),  # terms -1 (ours 0) and 1
        (RED_CAT, cats(1), 1, 1),
        (RED_CAT, cats(1, "blue"), 0.5, 0.5),
        (RED_CAT, cats(2), 0, 0),  # the count's 0 and the 0 for its color
        (RED_CAT, [], 0, 0),
        (RED_CATS, [*cats(2), *cats(1, "blue")], 5 / 6, 5 / 6),  # 1 and 2/3
        (RED_CATS, cats(2), 1 / 3, 1 / 3),  # 2/3 and 0
        (ATTRIBUTES, [*cats(1), DOG], 1, 1),
        (ATTRIBUTES, [*cats(1, "blue"), ("dog", "red", HERE)], 0.5, 0.5),
        (ATTRIBUTES, cats(1), 0.5, 0.5),  # 1, 1, 0, 0
        (POSITION, [DOG, ("cat", "red", LEFT)], 1, 1),
        (POSITION, [DOG, ("cat", "red", RIGHT)], 2 / 3, 0.75),  # 1, 1, 0 and theirs another 1
        (POSITION, [DOG], 1 / 3, 1 / 3),  # 1, 0, 0
        (POSITION, [("cat", "red", LEFT)], 1 / 3, 1 / 3),  # 0, 1, no target 0
        (POSITION, [DOG, DOG, ("cat", "red", LEFT)], 1 / 3, 1 / 3),  # two dogs are no target
        (POSITION, [], 0, 0),  # 0, 0, 0
        (BOTH, [DOG, ("cat", "red", LEFT)], 1, 1),
        (BOTH, [DOG, ("cat", "blue", LEFT)], 2 / 3, 2 / 3),  # 1, 1, 0; the position is not looked at
        (BOTH, [DOG, ("cat", "red", RIGHT)], 0.75, 0.8),  # 1, 1, 1, 0 and theirs another 1
        (BOTH, [DOG], 1 / 3, 1 / 3),  # 1, 0 and one 0 for color and position
        (NO_DOG, cats(1), 1, 1),
        (NO_DOG, [*cats(1), DOG], 0.5, 1),  # theirs does not look at exclude
        (FEW_DOGS, [*cats(1), DOG, DOG], 1, 1),
        (FEW_DOGS, [*cats(1), DOG, DOG, DOG], 5 / 6, 1),  # one too many of fewer than three: 1 - 1/3
        (FEW_DOGS, [*cats(1), *[DOG] * 8], 0.5, 1),
        (CONTRADICTION, cats(1), 0.5, 1),
        (CONTRADICTION, [], 0.5, 0),
    ],
)
def test_by_hand(metadata: dict[str, object], things: Boxes, ours: float, theirs: float) -> None:
    assert scores(read_metadata(metadata), things) == pytest.approx((ours, theirs), abs=1e-12)


def test_wrong_position_of_several_objects_is_one_zero_and_their_one() -> None:
    metadata = read_metadata(
        {
            "tag": "position",
            "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 2, "position": ["left of", 0]}],
        }
    )
    assert scores(metadata, [DOG, ("cat", "red", RIGHT), ("cat", "red", RIGHT)]) == pytest.approx((2 / 3, 3 / 4))


def test_counting_ignores_what_is_not_confident() -> None:
    groups = by_class([Detection("cat", 0.95, HERE, MASK)] * 3 + [Detection("cat", 0.9, HERE, MASK)])
    assert reward(groups, read_metadata(COUNTING), lambda _: "red").score == 1


def test_terms_say_what_was_asked() -> None:
    graded = reward(by_class([Detection("cat", 0.95, HERE, MASK)]), read_metadata(RED_CAT), lambda _: "blue")
    assert [(term.label, term.asked, term.value) for term in graded.terms] == [("cat", "count", 1), ("cat", "color", 0)]


CLASSES = ("cat", "dog", "bird")


@st.composite
def questions(draw: st.DrawFn) -> Metadata:
    include = []
    for index in range(draw(st.integers(1, 3))):
        clause: dict[str, object] = {"class": draw(st.sampled_from(CLASSES)), "count": draw(st.integers(1, 2))}
        if draw(st.booleans()):
            clause["color"] = draw(st.sampled_from(COLORS[:2]))
        if index and draw(st.booleans()):
            clause["position"] = [draw(st.sampled_from(RELATIONS)), draw(st.integers(0, index - 1))]
        include.append(clause)
    exclude = [{"class": draw(st.sampled_from(CLASSES)), "count": draw(st.integers(1, 3))}]
    tag = draw(st.sampled_from(("counting", "position")))
    return read_metadata({"tag": tag, "include": include, "exclude": exclude if draw(st.booleans()) else []})


@st.composite
def pictures(draw: st.DrawFn) -> list[tuple[Detection, str]]:
    def thing() -> tuple[Detection, str]:
        x, y = draw(st.integers(0, 50)), draw(st.integers(0, 50))
        score = draw(st.sampled_from((0.2, 0.5, 0.92, 0.97)))
        return Detection(draw(st.sampled_from(CLASSES)), score, (x, y, x + 8, y + 8), MASK), draw(
            st.sampled_from(COLORS[:2])
        )

    return [thing() for _ in range(draw(st.integers(0, 5)))]


@given(questions(), pictures())
@settings(max_examples=200, deadline=None)
def test_full_reward_implies_the_official_verdict(metadata: Metadata, picture: list[tuple[Detection, str]]) -> None:
    colors = {id(detection): color for detection, color in picture}
    groups = by_class([detection for detection, _ in picture])
    graded = reward(groups, metadata, lambda d: colors[id(d)])
    assert 0 <= graded.score <= 1
    if graded.score == 1:
        assert evaluate(groups, metadata, lambda d: colors[id(d)]).correct
