import numpy as np
import pytest

from trainer.paired import paired_difference, paired_rewards

pytestmark = pytest.mark.unit


def test_the_interval_is_about_that_of_a_normal_mean():
    rng = np.random.default_rng(3)
    before = rng.normal(20.0, 4.0, 400)
    after = before + rng.normal(0.5, 1.0, 400)
    found = paired_difference(before.tolist(), after.tolist())
    assert found is not None
    difference = after - before
    half = 1.96 * difference.std(ddof=1) / np.sqrt(400)
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.01)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.01)
    assert found.deviation == pytest.approx(before.std(ddof=1))
    assert found == paired_difference(before.tolist(), after.tolist())


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = paired_difference([0.0] * 40, rng.normal(1.0, 2.0, 40).tolist())
        assert found is not None
        covered += found.low <= 1.0 <= found.high
    assert 175 <= covered <= 200  # .95 of 200 within about four standard errors; small samples cover a little less


def test_a_missing_result_leaves_its_pair_out():
    found = paired_difference([0.0, None, 1.0, 0.0], [1.0, 1.0, None, 0.5])
    assert found is not None
    assert (found.mean, found.pairs) == (0.75, 2)
    assert paired_difference([0.0, None], [1.0, 1.0]) is None
    with pytest.raises(ValueError, match="argument 2 is longer"):
        paired_difference([0.0], [1.0, 1.0])


def evaluation(prompts: str, **rewards: list[float]) -> dict[str, object]:
    items = [
        {"prompt": prompt, "scores": {name: column[row] for name, column in rewards.items()}}
        for row, prompt in enumerate(prompts)
    ]
    return {"rewards": {name: {} for name in rewards}, "items": items}


def test_rewards_of_both_evaluations_are_paired_by_place():
    before = evaluation("abc", geneval=[0, 0, 1], ocr=[0, 0, 0])
    after = evaluation("abc", geneval=[1, 0, 1], pickscore=[1, 2, 3])
    assert {name: found.mean for name, found in paired_rewards(before, after).items()} == {
        "geneval": pytest.approx(1 / 3)
    }
    assert paired_rewards(before, evaluation("abd", geneval=[1, 0, 1])) == {}
