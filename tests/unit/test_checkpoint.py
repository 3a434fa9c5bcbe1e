"""Checkpoints: a run that stops and goes on is the run that never stopped; its LoRA opens in diffusers."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from trainer.checkpoint import STATE, CheckpointError, Checkpoints, restore
from trainer.config import LossConfig, OptimizerConfig, PromptSource, RolloutConfig, WindowConfig
from trainer.ema import MovingAverage
from trainer.models.sd3 import SD3
from trainer.prompts import PromptMix
from trainer.rollout import ImageNoise, roll_out, sample, window
from trainer.update import PolicyUpdate

pytestmark = pytest.mark.unit

Make = Callable[..., SD3]

PROMPTS = ["a photo of a red circle", "a photo of two crosses"]
SOURCE = PromptSource(path="tiny_world:prompt_sets/small_train.jsonl", rewards={"redness": 1.0}, focus=0.5)
ROLLOUT = RolloutConfig(groups=2, group_size=3, steps=5, window=WindowConfig(size=2, last=4))
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, ema_every=2, updates_per_epoch=1)


class Run:
    """A training run in small: everything but the rewards' transport, which is the images' own redness."""

    def __init__(self, model: SD3) -> None:
        self.model = model
        self.average = MovingAverage(model.lora_parameters(), OPTIMIZER.ema_decay)
        self.update = PolicyUpdate(model, self.average, ROLLOUT, LossConfig(), OPTIMIZER, epochs=10)
        self.mix = PromptMix([SOURCE], seed=3)
        self.images: np.ndarray = np.zeros(0)

    def epoch(self, number: int) -> None:
        prompts = self.mix.epoch(number, 2)
        text = self.model.encode([prompt.text for prompt in prompts])
        trained = window(ROLLOUT, 3, number)
        rollout = roll_out(self.model, text, None, (0, 1), ROLLOUT, "full", trained, seed=3, epoch=number)
        self.images = rollout.images
        red = rollout.images[..., 0].astype(float).mean(axis=(1, 2)).reshape(2, 3)
        self.mix.learn(prompts, red)
        self.update.run([rollout], (red - red.mean(axis=1, keepdims=True)) / red.std(axis=1, keepdims=True))

    def save(self, folder: Path, epochs: int = 1) -> Path:
        return Checkpoints(folder).save(epochs, self.model, self.average, self.update, self.mix)

    def restore(self, checkpoint: Path) -> int:
        return restore(checkpoint, self.model, self.average, self.update, self.mix)

    def state(self) -> list[torch.Tensor]:
        """All numbers the run consists of."""
        moments = [value for slot in self.update.optimizer.state.values() for value in slot.values()]
        counts = torch.tensor([self.update.steps_done, self.average.updates])
        spreads = torch.tensor([value for _, value in sorted(self.mix.state[0].items())])
        return [
            tensor.detach().clone()
            for tensor in (*self.model.lora_parameters(), *self.average.average, *moments, counts, spreads)
        ]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Going on


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(make_model: Make, tmp_path: Path, stop_after: int):
    whole = Run(make_model())
    for number in range(4):
        whole.epoch(number)

    stopped = Run(make_model())
    for number in range(stop_after):
        stopped.epoch(number)
    checkpoint = stopped.save(tmp_path, stop_after)

    resumed = Run(make_model(seed=99))
    assert not same(resumed.state(), stopped.state())
    done = resumed.restore(checkpoint)
    assert done == stop_after
    assert same(resumed.state(), stopped.state())
    for number in range(done, 4):
        resumed.epoch(number)
    assert same(resumed.state(), whole.state())
    np.testing.assert_array_equal(resumed.images, whole.images)


def test_saving_disturbs_nothing(make_model: Make, tmp_path: Path):
    run = Run(make_model())
    run.epoch(0)
    before = run.state()
    run.save(tmp_path)
    assert same(run.state(), before)


def test_a_checkpoint_shares_no_memory_with_the_run(make_model: Make, tmp_path: Path):
    run = Run(make_model())
    run.epoch(0)
    before, checkpoint = run.state(), run.save(tmp_path)
    run.epoch(1)
    run.restore(checkpoint)
    assert same(run.state(), before)


# In diffusers' hands


def test_the_saved_lora_gives_diffusers_the_averages_images(make_model: Make, tmp_path: Path, pipeline_folder: Path):
    run = Run(make_model(stirred=True))
    for number in range(3):
        run.epoch(number)
    checkpoint = run.save(tmp_path)
    model, keys = run.model, [5, 6]
    text = model.encode(PROMPTS)
    raw = sample(model, text, None, keys, 4, 1.0)
    with run.average.applied():
        averaged = sample(model, text, None, keys, 4, 1.0)

    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    start = ImageNoise(keys, model.latent_shape, model.device).draw()
    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 1, "height": 64, "width": 64}

    def draw() -> np.ndarray:
        images = pipe(PROMPTS, latents=start.clone(), output_type="np", **settings).images
        return (images * 255).round().astype(int)

    untouched = draw()
    pipe.load_lora_weights(checkpoint)
    loaded = draw()
    assert np.abs(loaded - averaged).max() <= 1
    # Neither the base model's images nor those of the raw weights would pass for them.
    assert np.abs(loaded - untouched).max() > 10
    assert np.abs(loaded - raw).max() > 1


# The folder


def test_only_the_latest_checkpoint_is_kept(make_model: Make, tmp_path: Path):
    run = Run(make_model())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest() is None
    for epochs in (8, 9, 10, 100):
        path = checkpoints.save(epochs, run.model, run.average, run.update, run.mix)
        assert checkpoints.latest() == path
        assert os.listdir(checkpoints.folder) == [path.name] == [f"epoch_{epochs:06d}"]


def test_saving_an_epoch_again_replaces_it(make_model: Make, tmp_path: Path):
    run = Run(make_model())
    run.save(tmp_path, 1)
    run.epoch(0)
    checkpoint = run.save(tmp_path, 1)
    resumed = Run(make_model())
    resumed.restore(checkpoint)
    assert same(resumed.state(), run.state())


def test_a_save_that_was_cut_short_is_ignored_and_cleared_away(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(make_model())
    first = run.save(tmp_path, 1)
    with monkeypatch.context() as broken:
        broken.setattr(SD3, "save_lora", lambda self, folder: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run.save(tmp_path, 2)
    assert Checkpoints(tmp_path).latest() == first
    second = run.save(tmp_path, 2)
    assert os.listdir(tmp_path) == [second.name]


# Faults


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_state_is_an_error_that_names_the_file(make_model: Make, tmp_path: Path, share: float):
    run = Run(make_model())
    checkpoint = run.save(tmp_path)
    path = checkpoint / STATE
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    before = run.state()
    with pytest.raises(CheckpointError) as caught:
        run.restore(checkpoint)
    assert str(path) in str(caught.value)
    assert same(run.state(), before)


def test_a_state_that_is_not_there_is_named(make_model: Make, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        Run(make_model()).restore(tmp_path)


def test_a_file_that_is_no_checkpoint_is_named(make_model: Make, tmp_path: Path):
    checkpoint = Run(make_model()).save(tmp_path)
    (checkpoint / STATE).write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"state\.pt: is not a readable checkpoint"):
        Run(make_model()).restore(checkpoint)


def test_a_state_that_lacks_a_part_names_it(make_model: Make, tmp_path: Path):
    checkpoint = Run(make_model()).save(tmp_path)
    state = torch.load(checkpoint / STATE, weights_only=True)
    del state["optimizer"]
    torch.save(state, checkpoint / STATE)
    with pytest.raises(CheckpointError, match=r"state\.pt: lacks optimizer"):
        Run(make_model()).restore(checkpoint)


def test_a_checkpoint_of_another_rank_is_refused(make_model: Make, tmp_path: Path):
    checkpoint = Run(make_model(rank=4)).save(tmp_path)
    with pytest.raises(CheckpointError, match="other shapes"):
        Run(make_model(rank=8)).restore(checkpoint)


def test_a_checkpoint_of_a_recipe_with_more_prompt_sources_is_refused(make_model: Make, tmp_path: Path):
    checkpoint = Run(make_model()).save(tmp_path)
    other = Run(make_model())
    other.mix = PromptMix([SOURCE, SOURCE], seed=3)
    with pytest.raises(CheckpointError, match="has 1 prompt sources, the recipe 2"):
        other.restore(checkpoint)
