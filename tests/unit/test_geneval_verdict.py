"""GenEval's official verdict, case by case over hand-made detections."""

import numpy as np
import pytest

from reward_services.geneval.detector import Detection
from reward_services.geneval.metadata import Metadata, read_metadata
from reward_services.geneval.verdict import Verdict, by_class, evaluate, kept, relative_position

pytestmark = pytest.mark.unit

MASK = np.zeros((1, 1), dtype=bool)
Box = tuple[float, float, float, float]


def seen(label: str, score: float = 0.95, box: Box = (0, 0, 10, 10)) -> Detection:
    return Detection(label, score, box, MASK)


def asked(
    *include: dict[str, object], tag: str = "two_object", exclude: tuple[dict[str, object], ...] = ()
) -> Metadata:
    return read_metadata({"tag": tag, "include": list(include), "exclude": list(exclude)})


def verdict(metadata: Metadata, *detections: Detection, colors: dict[int, str] | None = None) -> Verdict:
    return evaluate(by_class(detections), metadata, lambda detection: (colors or {})[id(detection)])


def test_an_object_must_exceed_the_threshold() -> None:
    cat = asked({"class": "cat", "count": 1}, tag="single_object")
    assert verdict(cat, seen("cat", 0.31)) == Verdict(True, "")
    assert verdict(cat, seen("cat", 0.3)) == Verdict(False, "expected at least 1 cat, found 0")
    assert not verdict(cat, seen("dog")).correct
    assert not verdict(cat).correct


def test_counting_keeps_only_confident_objects() -> None:
    two = {"class": "cat", "count": 2}
    unsure = (seen("cat", 0.95), seen("cat", 0.9))
    assert verdict(asked(two), *unsure).correct
    assert not verdict(asked(two, tag="counting"), *unsure).correct
    assert verdict(asked(two, tag="counting"), seen("cat", 0.95), seen("cat", 0.91)).correct


def test_more_objects_than_asked_do_no_harm_unless_excluded() -> None:
    three_cats = [seen("cat") for _ in range(3)]
    assert verdict(asked({"class": "cat", "count": 2}), *three_cats).correct
    exact = asked({"class": "cat", "count": 2}, tag="counting", exclude=({"class": "cat", "count": 3},))
    assert verdict(exact, *three_cats) == Verdict(False, "expected fewer than 3 cat, found 3")
    assert verdict(exact, *three_cats[:2]).correct


def test_exclude_of_another_class() -> None:
    no_dog = asked({"class": "cat", "count": 1}, exclude=({"class": "dog", "count": 1},))
    assert verdict(no_dog, seen("cat")).correct
    assert not verdict(no_dog, seen("cat"), seen("dog")).correct


def test_only_sixteen_objects_of_a_class_are_kept_best_first_without_nms() -> None:
    crowd = [seen("cat", 0.5 + i / 100) for i in range(20)]
    assert [d.score for d in kept(by_class(crowd), "colors")["cat"]] == [d.score for d in crowd[:3:-1]]
    seventeen = asked({"class": "cat", "count": 16}, exclude=({"class": "cat", "count": 17},))
    assert verdict(seventeen, *crowd).correct


def test_color_is_asked_of_the_most_confident_objects_only() -> None:
    red_cat = asked({"class": "cat", "count": 1, "color": "red"}, tag="colors")
    first, second = seen("cat", 0.8), seen("cat", 0.7)
    assert verdict(red_cat, second, first, colors={id(first): "red", id(second): "blue"}).correct
    wrong = verdict(red_cat, second, first, colors={id(first): "blue", id(second): "red"})
    assert wrong == Verdict(False, "expected 1 red cat, found blue")


def test_all_counted_objects_need_the_color() -> None:
    two_red = asked({"class": "cat", "count": 2, "color": "red"})
    a, b = seen("cat", 0.9), seen("cat", 0.8)
    assert verdict(two_red, a, b, colors={id(a): "red", id(b): "red"}).correct
    assert not verdict(two_red, a, b, colors={id(a): "red", id(b): "green"}).correct


LEFT = ({"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]})


def test_position_between_two_objects() -> None:
    dog = seen("dog", box=(40, 0, 50, 10))
    assert verdict(asked(*LEFT, tag="position"), dog, seen("cat", box=(0, 0, 10, 10))).correct
    right = verdict(asked(*LEFT, tag="position"), dog, seen("cat", box=(80, 0, 90, 10)))
    assert right == Verdict(False, "expected cat left of dog, found it right of it")
    same = verdict(asked(*LEFT, tag="position"), dog, seen("cat", box=(40, 0, 50, 10)))
    assert same.reason == "expected cat left of dog, found it in no relation to it"


def test_position_without_its_target_fails() -> None:
    result = verdict(asked(*LEFT, tag="position"), seen("cat"))
    assert result.reason == "expected at least 1 dog, found 0; no target for cat to be left of"


def test_position_needs_a_target_of_the_right_color() -> None:
    red_dog = asked({"class": "dog", "count": 1, "color": "red"}, LEFT[1])
    dog, cat = seen("dog", box=(40, 0, 50, 10)), seen("cat")
    assert verdict(red_dog, dog, cat, colors={id(dog): "red"}).correct
    assert "no target" in verdict(red_dog, dog, cat, colors={id(dog): "blue"}).reason


def test_every_object_stands_in_relation_to_every_target() -> None:
    metadata = asked({"class": "dog", "count": 2}, {"class": "cat", "count": 2, "position": ["left of", 0]})
    dogs = seen("dog", box=(40, 0, 50, 10)), seen("dog", box=(60, 0, 70, 10))
    near, far, between = (seen("cat", box=(x, 0, x + 10, 10)) for x in (0, 15, 52))
    assert verdict(metadata, *dogs, near, far).correct
    assert not verdict(metadata, *dogs, near, between).correct


@pytest.mark.parametrize(
    ("box", "relations"),
    [
        ((-20, 0, -10, 10), {"left of"}),
        ((20, 0, 30, 10), {"right of"}),
        ((0, -20, 10, -10), {"above"}),
        ((0, 20, 10, 30), {"below"}),
        ((20, 20, 30, 30), {"right of", "below"}),  # offset (20, 20): 18 / 28.28 = .64 on both axes
        ((2, 0, 12, 10), set()),  # offset 2 = .1 * (10 + 10): nothing is left
        ((2.002, 0, 12.002, 10), set()),  # .002 left of 2.002: .001 of the offset
        ((4, 0, 14, 10), set()),  # (4 - 2) / 4 = .5 is not more than half
        ((4.1, 0, 14.1, 10), {"right of"}),  # (4.1 - 2) / 4.1 = .51
        ((0, 0, 10, 10), set()),
        ((12, 8, 22, 18), {"right of"}),  # offset (12, 8), length 14.42: .69 and .42
    ],
)
def test_relative_position(box: Box, relations: set[str]) -> None:
    assert relative_position(box, (0, 0, 10, 10)) == relations


def test_sizes_of_both_boxes_count() -> None:
    assert relative_position((40, 40, 60, 60), (0, 0, 20, 20)) == {"right of", "below"}
    assert relative_position((10, 0, 30, 20), (0, 0, 10, 20)) == {"right of"}  # (15 - 3) / 15
    assert relative_position((-45, 0, 75, 20), (0, 0, 10, 20)) == set()  # (10 - 13) < 0
