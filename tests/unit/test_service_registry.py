"""From names and text options to scorers, with errors that say what to do."""

import sys
from pathlib import Path

import numpy as np
import pytest

from flow_grpo.cli import REWARDS
from reward_api import Item, Score
from reward_services.ocr.scorer import OcrScorer
from reward_services.registry import BUILT_IN, load_scorer
from reward_services.scoring import info_of, score_batch

pytestmark = pytest.mark.unit

OWN = """
class Constant:
    name = "constant"
    version = "1"

    def __init__(self, value: float = 1.0, count: int = 2, label: str = "x"):
        self.value, self.count, self.label = value, count, label

    def score(self, batch):
        return [self.value] * len(batch)


class Demanding(Constant):
    def __init__(self, place: str):
        self.place = place


class NoScorer:
    name = "none"
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_rewards.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return "my_rewards"


def test_a_built_in_reward_with_options() -> None:
    scorer = load_scorer("ocr", {"strict": "true"})
    assert isinstance(scorer, OcrScorer)
    assert scorer.strict


def test_the_command_line_names_every_built_in_reward() -> None:
    assert set(REWARDS) == set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_reward_can_be_made(name: str) -> None:
    needed = {"vlm_judge": {"preset": "qwen_vl", "base_url": "http://judge/v1", "model": "m"}}
    assert info_of(load_scorer(name, needed.get(name, {}))).name == name


def test_a_class_in_the_working_directory(own_module: str) -> None:
    scorer = load_scorer(f"{own_module}:Constant", {"value": "2.5", "count": "3", "label": "y"})
    assert (scorer.value, scorer.count, scorer.label) == (2.5, 3, "y")  # type: ignore[attr-defined]


def test_the_readmes_reward_of_ones_own_is_at_most_ten_lines_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    source = readme.partition("# sharpness.py\n")[2].partition("```")[0]
    assert 0 < sum(bool(line.strip()) for line in source.splitlines()) <= 10
    (tmp_path / "sharpness.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    edge = np.zeros((4, 2, 3), dtype=np.uint8)
    edge[2:] = 30
    outcomes = score_batch(load_scorer("sharpness:Sharpness", {}), [Item(edge, "x"), Item(0 * edge, "x")])
    assert outcomes == [Score(10.0), Score(0.0)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("beauty", {}, "choose geneval, ocr, pickscore, clipscore"),
        ("no_such_module:Scorer", {}, "no_such_module"),
        ("my_rewards:Missing", {}, "no class 'Missing'"),
        ("my_rewards:NoScorer", {}, "lacks version, score"),
        ("my_rewards:Constant", {"size": "3"}, "no option size"),
        ("my_rewards:Constant", {"count": "many"}, "must be int, got 'many'"),
        ("ocr", {"strict": "perhaps"}, "must be bool"),
        ("my_rewards:Demanding", {}, "needs the option place"),
    ],
)
def test_errors_name_what_is_wrong(own_module: str, name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_scorer(name, options)
