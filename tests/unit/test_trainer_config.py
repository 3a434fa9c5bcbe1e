from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.config import ConfigError, TrainConfig, load_config

pytestmark = pytest.mark.unit

SMALLEST: dict[str, Any] = {
    "name": "smoke",
    "epochs": 3,
    "model": {"path": "some/model"},
    "prompts": [{"path": "prompts.jsonl", "rewards": {"geneval": 1.0}}],
}

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(recipe: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
        return path

    return write


def test_a_small_recipe_gets_the_papers_defaults(write: Write):
    config = load_config(write(SMALLEST))
    assert config.name == "smoke"
    assert (config.rollout.groups, config.rollout.group_size, config.rollout.steps) == (48, 24, 10)
    assert (config.loss.clip, config.loss.advantage_clip, config.loss.kl.beta) == (1e-4, 5.0, 0.0)
    assert (config.optimizer.learning_rate, config.optimizer.ema_decay) == (3e-4, 0.9)
    assert (config.lora.rank, config.lora.alpha) == (32, 64)


def test_a_config_is_frozen(write: Write):
    config = load_config(write(SMALLEST))
    with pytest.raises(ValueError, match="frozen"):
        config.rollout.steps = 3


def test_a_config_survives_being_written_out(write: Write):
    config = load_config(write(SMALLEST), ["--rollout.window={size: 2, last: 4}", "--loss.kl.beta=0.04"])
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


BAD_RECIPES = {
    # overrides -> what the message must name
    ("--epoch=3",): "epoch: ",
    ("--epochs=0",): "epochs: ",
    ("--epochs=many",): "epochs: ",
    ("--model={}",): "model.path: ",
    ("--model.adapter=flux",): "model.adapter: ",
    ("--model.dtype=int8",): "model.dtype: ",
    ("--model.dtype=float16",): "model.dtype: ",
    ("--model.resolution=8",): "model.resolution: ",
    ("--lora.rank=0",): "lora.rank: ",
    ("--prompts=[]",): "prompts: ",
    ("--prompts=[{path: a.jsonl, rewards: {}}]",): "prompts.0: .*at least one reward",
    ("--prompts=[{path: a.jsonl}]",): "prompts.0.rewards: ",
    ("--prompts=[{path: a.jsonl, rewards: {ocr: much}}]",): "prompts.0.rewards.ocr: ",
    ("--prompts=[{path: a.jsonl, rewards: {ocr: .nan}}]",): "prompts.0.rewards.ocr: .*finite",
    ("--prompts=[{path: a.jsonl, rewards: {ocr: 1}, weight: 0}]",): "prompts.0.weight: ",
    ("--prompts=[{path: a.jsonl, rewards: {ocr: 1}, tag_weights: {a: -1}}]",): "prompts.0.tag_weights.a: ",
    ("--prompts=[{path: a.jsonl, rewards: {ocr: 1}, tag_weights: {a: 0}}]",): "prompts.0: .*must not all be zero",
    ("--rollout.group_size=1",): "rollout.group_size: ",
    ("--rollout.steps=1",): "rollout.steps: ",
    ("--rollout.step=dance",): "rollout.step: ",
    ("--rollout.noise_level=0",): "rollout.noise_level: ",
    ("--rollout.guidance=0.5",): "rollout.guidance: ",
    ("--rollout.noise_level=1.2",): "rollout: .*noise_level must be at most 1",
    ("--rollout.window={size: 3, first: 3, last: 5}",): "rollout.window: .*does not fit",
    ("--rollout.window={size: 3, last: 10}",): "rollout: .*last step is never part of the policy",
    ("--rollout.steps=5", "--rollout.window={size: 3}"): "rollout: .*window.last is 5",
    ("--loss.clip=0",): "loss.clip: ",
    ("--loss.clip=.nan",): "loss.clip: ",
    ("--loss.log_prob=half",): "loss.log_prob: ",
    ("--loss.kl.form=reverse",): "loss.kl.form: ",
    ("--loss.kl.beta=-1",): "loss.kl.beta: ",
    ("--loss.ratio_norm=true", "--loss.log_prob=flow_grpo"): "loss: .*ratio_norm",
    ("--advantages.statistics=prompt",): "advantages.statistics: ",
    ("--optimizer.learning_rate=0",): "optimizer.learning_rate: ",
    ("--optimizer.ema_decay=1",): "optimizer.ema_decay: ",
    ("--optimizer.updates_per_epoch=5",): "recipe: .*48 batches an epoch cannot be shared evenly by 5 updates",
    ("--rollout.groups_per_batch=5",): r"recipe: .*rollout.groups \(48\) is not a multiple",
    ("--rewards.max_missing=1",): "rewards.max_missing: ",
    ("--rewards.timeout_s=0",): "rewards.timeout_s: ",
    ("--evaluation.prompts=[{path: a}]",): "evaluation.prompts.0.rewards: ",
}


@pytest.mark.parametrize("overrides", BAD_RECIPES, ids=" ".join)
def test_a_bad_recipe_names_the_file_and_the_key(write: Write, overrides: tuple[str, ...]):
    path = write(SMALLEST)
    with pytest.raises(ConfigError, match=BAD_RECIPES[overrides]) as caught:
        load_config(path, overrides)
    assert str(caught.value).startswith(f"{path}: ")


def test_all_faults_are_named_at_once(write: Write):
    with pytest.raises(ConfigError) as caught:
        load_config(write(SMALLEST), ["--epochs=-1", "--loss.clip=-1", "--rollout.stps=3"])
    for key in ("epochs: ", "loss.clip: ", "rollout.stps: "):
        assert key in str(caught.value)


def test_window_may_reach_up_to_the_last_step_but_one(write: Write):
    config = load_config(write(SMALLEST), ["--rollout.window={size: 9, last: 9}"])
    assert config.rollout.window is not None
    assert config.rollout.window.last == config.rollout.steps - 1


def test_flow_sde_may_be_noisier_than_cps(write: Write):
    assert load_config(write(SMALLEST), ["--rollout.step=flow_sde", "--rollout.noise_level=1.2"])


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list\n", "{a: [}"])
def test_a_file_that_is_no_recipe_is_named(write: Write, text: str):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read \(No such file"):
        load_config(tmp_path / "absent.yaml")


# Overrides


def test_overrides_reach_into_sections_and_read_yaml(write: Write):
    overrides = [
        "--rollout.window.size=2",
        "--rollout.window.last=4",
        "--model.path=other",
        "--lora.targets=[attn.to_q, attn.to_k]",
        "--loss.ratio_norm=true",
        "--optimizer.learning_rate=1e-3",
        "name=without dashes",
        "--prompts=[{path: b.txt, rewards: {ocr: 2}}]",
    ]
    config = load_config(write(SMALLEST), overrides)
    assert config.rollout.window is not None
    assert (config.rollout.window.size, config.rollout.window.last) == (2, 4)
    assert config.model.path == "other"
    assert config.lora.targets == ("attn.to_q", "attn.to_k")
    assert config.loss.ratio_norm
    assert config.optimizer.learning_rate == 1e-3
    assert config.name == "without dashes"
    assert config.prompts[0].rewards == {"ocr": 2.0}


def test_a_later_override_wins_and_a_value_may_hold_an_equals_sign(write: Write):
    config = load_config(write(SMALLEST), ["--seed=1", "--seed=2", "--rewards.url=http://host/?a=b"])
    assert config.seed == 2
    assert config.rewards.url == "http://host/?a=b"


def test_the_environment_says_where_rewards_are_unless_an_override_does(write: Write):
    recipe = write(SMALLEST | {"rewards": {"url": "http://recipe", "timeout_s": 5}})
    told = {"REWARD_URL": "http://gateway:8100"}
    assert load_config(recipe).rewards.url == "http://recipe"
    assert load_config(recipe, [], {"REWARD_URL": ""}).rewards.url == "http://recipe"
    config = load_config(recipe, [], told)
    assert (config.rewards.url, config.rewards.timeout_s) == ("http://gateway:8100", 5)
    assert load_config(recipe, ["--rewards.url=http://override"], told).rewards.url == "http://override"


def test_null_takes_a_window_away(write: Write):
    recipe = SMALLEST | {"rollout": {"window": {"size": 3}}}
    assert load_config(write(recipe), ["--rollout.window=null"]).rollout.window is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--epochs", "expected --key=value"),
        ("--=3", "expected --key=value"),
        ("--name.first=3", "name is not a section"),
        ("--prompts.0.weight=3", "prompts is not a section"),
        ("--lora={", "not YAML"),
    ],
)
def test_an_override_that_cannot_be_applied_is_quoted(write: Write, override: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(SMALLEST), [override])
    assert repr(override) in str(caught.value)


def test_a_recipe_that_is_not_utf8_is_named(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: is not UTF-8"):
        load_config(path)
