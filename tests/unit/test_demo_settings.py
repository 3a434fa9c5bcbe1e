from pathlib import Path

import pytest

from flow_grpo import demo
from trainer.config import ConfigError, TrainConfig, load_config
from trainer.prompts import PromptMix, load_prompts

pytestmark = pytest.mark.unit

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def config(model: str, prompts: str, rewards: dict[str, float], held_out: dict[str, float] | None) -> TrainConfig:
    evaluation = {"prompts": [{"path": "held_out.jsonl", "rewards": held_out}] if held_out else []}
    tree = {
        "name": "demo",
        "epochs": 1,
        "model": {"path": model},
        "prompts": [{"path": prompts, "rewards": rewards}],
        "evaluation": evaluation,
    }
    return TrainConfig.model_validate(tree)


@pytest.mark.parametrize(
    ("model", "prompts", "world"),
    [
        ("tiny_world:weights/small", "prompts.jsonl", "small"),
        ("some/model", "tiny_world:prompt_sets/full_train.jsonl", "full"),
        ("weights/small", "small_train.jsonl", None),
        ("tiny_world:weights/other", "prompts.jsonl", None),
    ],
)
def test_geneval_looks_for_the_shapes_of_the_recipes_world(model: str, prompts: str, world: str | None) -> None:
    settings = config(model, prompts, {"geneval": 1.0}, {"geneval": 1.0})
    assert demo.rewards_needed(settings) == {"geneval": {"world": world} if world else {}}
    assert demo.rewards_needed(settings, "full") == {"geneval": {"world": "full"}}


def test_training_and_evaluation_rewards_are_both_started() -> None:
    settings = config("tiny_world:weights/small", "p.txt", {"geneval": 1.0, "ocr": 0.5}, {"pickscore": 1.0})
    assert demo.rewards_needed(settings) == {"geneval": {"world": "small"}, "ocr": {}, "pickscore": {}}


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 2), (16, 2)])
def test_ocr_has_a_second_process_where_it_is_trained_on(cores: int, processes: int) -> None:
    trained = config("m", "p.txt", {"geneval": 1.0, "ocr": 0.5}, {"ocr": 1.0})
    assert demo.replicas_wanted(trained, cores) == {"ocr": processes}
    assert demo.replicas_wanted(config("m", "p.txt", {"geneval": 1.0}, {"ocr": 1.0}), cores) == {}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_is_one_the_demo_can_run_and_judges_also_what_it_does_not_train_on(recipe: Path) -> None:
    settings = load_config(recipe)
    assert settings.name == recipe.stem
    PromptMix(settings.prompts, settings.seed).epoch(0, settings.rollout.groups)
    trained, held_out = (
        {name for source in sources for name in source.rewards}
        for sources in (settings.prompts, settings.evaluation.prompts)
    )
    draws_signs = settings.model.path.endswith("signs")
    assert trained <= held_out == ({"geneval", "ocr", "pickscore"} if draws_signs else {"geneval", "pickscore"})
    assert demo.rewards_needed(settings).keys() == held_out
    assert settings.evaluation.embedder


def test_no_recipe_trains_on_a_prompt_it_is_judged_by() -> None:
    for recipe in RECIPES:
        settings = load_config(recipe)
        trained, held_out = (
            {prompt.text for source in sources for prompt in load_prompts(source)}
            for sources in (settings.prompts, settings.evaluation.prompts)
        )
        assert trained
        assert not trained & held_out, recipe


def test_a_recipe_without_evaluation_has_nothing_to_compare() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.prompts is empty"):
        demo.rewards_needed(config("tiny_world:weights/small", "p.txt", {"geneval": 1.0}, None))


def test_an_unreadable_recipe_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "absent.yaml", tmp_path / "demo"
    assert demo.main([f"--recipe={recipe}", f"--out={out}"]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"flow-grpo demo: {recipe}: cannot be read (No such file or directory)\n"
    assert printed.out == ""
    assert not out.exists()


@pytest.mark.parametrize("out", [".", "..", "/", "runs/.."])
def test_the_run_needs_a_folder_of_its_own(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([f"--recipe={tmp_path / 'absent.yaml'}", f"--out={out}"]) == 1
    assert capsys.readouterr().err == f"flow-grpo demo: --out {Path(out)} names no folder of its own\n"
