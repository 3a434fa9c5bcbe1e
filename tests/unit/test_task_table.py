import json
from pathlib import Path

import pytest

from reward_api import ItemError, Score
from trainer.task_table import RewardSummary, Tally, counted_table, result, saved_table, table

pytestmark = pytest.mark.unit


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def tallied(*images: tuple[str, str, float | None]) -> Tally:
    tally = Tally()
    for task, prompt, value in images:
        tally.add(task, prompt, value)
    return tally


def test_the_score_is_the_mean_over_tasks_and_not_over_images():
    tally = tallied(("colors", "a", 1.0), ("counting", "b", 0.0), ("counting", "b", 0.0), ("counting", "c", None))
    assert tally.summary() == RewardSummary(0.5, {"colors": 1.0, "counting": 0.0}, images=4, missing=1)


def test_the_counted_table_has_genevals_order_and_counts_prompts_once():
    tally = tallied(("other", "z", 2.0), ("color_attr", "a", 1.0), ("counting", "b", 0.0), ("counting", "b", None))
    assert cells(counted_table({"geneval": tally, "ocr": tallied(("ocr", "x", 0.25))})) == [
        ["geneval", "score", "images", "prompts", "missing"],
        ["counting", "0.000", "2", "1", "1"],
        ["color_attr", "1.000", "1", "1", "0"],
        ["other", "2.000", "1", "1", "0"],
        ["mean", "of", "tasks", "1.000", "4", "3", "1"],
        ["ocr", "score", "images", "prompts", "missing"],
        ["ocr", "0.250", "1", "1", "0"],
        ["mean", "of", "tasks", "0.250", "1", "1", "0"],
    ]


def test_figures_stand_under_their_titles_whatever_the_names():
    tally = tallied(("prompt", "x", 0.25), ("a task of one's own", "y", 0.5))
    for block in (counted_table({"jpeg_compressibility": tally}), counted_table({"ocr": tally})):
        assert len({len(line) for line in block.splitlines()}) == 1


def test_a_task_without_a_score_leaves_the_mean_open():
    tally = tallied(("colors", "a", 1.0), ("counting", "b", None))
    assert tally.unscored() == ["counting"]
    assert cells(counted_table({"geneval": tally}))[1:] == [
        ["counting", "-", "1", "1", "1"],
        ["colors", "1.000", "1", "1", "0"],
        ["mean", "of", "tasks", "-", "2", "2", "1"],
    ]


def test_two_evaluations_stand_side_by_side():
    before = {"geneval": RewardSummary(0.25, {"colors": 0.25}, 4, 0)}
    after = {"geneval": RewardSummary(0.5, {"colors": 0.75, "counting": 0.25}, 8, 0)}
    assert cells(table(before, after)) == [
        ["geneval", "before", "after"],
        ["colors", "0.250", "0.750"],
        ["counting", "-", "0.250"],
        ["mean", "of", "tasks", "0.250", "0.500"],
    ]
    assert cells(table(None, before)) == [
        ["geneval", "score"],
        ["colors", "0.250"],
        ["mean", "of", "tasks", "0.250"],
    ]


def test_saved_evaluations_are_read_back(tmp_path: Path):
    for label, score in (("before", 0.1), ("after", 0.9)):
        rewards = {"ocr": {"score": score, "tasks": {"ocr": score}, "images": 2, "missing": 0}}
        items = [{"prompt": prompt, "scores": {"ocr": score}} for prompt in ("a", "b")]
        (tmp_path / f"{label}.json").write_text(json.dumps({"rewards": rewards, "items": items}))
    lines = cells(saved_table(tmp_path))
    assert lines[1] == ["ocr", "0.100", "0.900"]
    assert lines[-1] == ["ocr", "+0.800", "[+0.800,", "+0.800]", "over", "2", "pairs"]


def test_the_verdict_counts_where_there_is_one():
    assert result(Score(0.25, {"correct": True})) == 1.0
    assert result(Score(0.75, {"correct": False})) == 0.0
    assert result(Score(0.25)) == 0.25
    assert result(ItemError("bad_image", "why")) is None
    assert result(None) is None
