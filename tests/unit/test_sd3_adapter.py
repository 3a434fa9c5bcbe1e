"""The SD3 adapter against diffusers' own pipeline on tiny random models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from tiny_world.pretrain.model import clip_tokenizer, text_encoder
from trainer.models.sd3 import SD3, Conditioning, ModelError
from trainer.rollout import ImageNoise, sample

pytestmark = pytest.mark.unit

Make = Callable[..., SD3]

PROMPTS = ["a photo of a red circle", "a photo of two crosses"]
KEYS = [11, 12]


@pytest.fixture(scope="module")
def plain(pipeline_folder: Path) -> StableDiffusion3Pipeline:
    """The same weights in diffusers' hands alone."""
    return load(pipeline_folder, text_encoder_3=None, tokenizer_3=None)


def load(folder: Path, **parts: None) -> StableDiffusion3Pipeline:
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(model: SD3, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, *model.latent_shape), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def velocity_of(pipe: StableDiffusion3Pipeline, x: torch.Tensor, t: float, prompts: list[str], length: int = 1) -> Any:
    tokens, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return pipe.transformer(x, tokens, pooled, timestep=torch.tensor([1000 * t] * len(x))).sample


def pictures_of(pipe: StableDiffusion3Pipeline, x: torch.Tensor, steps: int, guidance: float, **kwargs: Any) -> Any:
    settings = {"output_type": "np", "max_sequence_length": 1, "height": 64, "width": 64} | kwargs
    return pipe(PROMPTS, latents=x.clone(), num_inference_steps=steps, guidance_scale=guidance, **settings).images


# Forward passes


@pytest.mark.parametrize("t", [1.0, 0.6022, 0.0089])
def test_the_velocity_is_the_pipelines_transformer(make_model: Make, plain: StableDiffusion3Pipeline, t: float):
    model = make_model()
    x = latents(model)
    with torch.no_grad():
        assert torch.equal(model.velocity(x, t, model.encode(PROMPTS), None, 1.0), velocity_of(plain, x, t, PROMPTS))


def test_guidance_mixes_both_branches(make_model: Make, plain: StableDiffusion3Pipeline):
    model = make_model()
    x = latents(model)
    with torch.no_grad():
        guided = model.velocity(x, 0.5, model.encode(PROMPTS), model.encode([""]).expand(2), 4.0)
    conditional, unconditional = velocity_of(plain, x, 0.5, PROMPTS), velocity_of(plain, x, 0.5, ["", ""])
    torch.testing.assert_close(guided, 4 * conditional - 3 * unconditional, rtol=1e-4, atol=1e-5)


def test_guidance_without_the_empty_prompt_is_refused(make_model: Make):
    model = make_model()
    with pytest.raises(ValueError, match="unconditional"):
        model.velocity(latents(model), 0.5, model.encode(PROMPTS), None, 4.0)


def test_prompts_are_encoded_one_by_one_or_together_alike(make_model: Make):
    model = make_model()
    together = model.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = model.encode([prompt])
        torch.testing.assert_close(alone.tokens_BLD[0], together.tokens_BLD[row])
        torch.testing.assert_close(alone.pooled_BD[0], together.pooled_BD[row])


def test_expand_keeps_copies_of_a_prompt_side_by_side():
    text = Conditioning(torch.arange(4.0).reshape(2, 1, 2), torch.arange(2.0).reshape(2, 1)).expand(3)
    assert text.tokens_BLD[:, 0, 0].tolist() == [0, 0, 0, 2, 2, 2]
    assert text.pooled_BD[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("steps", [4, 10])
def test_the_schedule_is_the_pipelines(make_model: Make, plain: StableDiffusion3Pipeline, steps: int):
    sigmas = make_model().sigmas(steps)
    plain.scheduler.set_timesteps(steps)
    assert sigmas == plain.scheduler.sigmas.tolist()
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (steps + 1, 1.0, 0.0)
    assert sigmas == sorted(sigmas, reverse=True)


# Sampling


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_ode_sampling_is_the_pipelines_call(
    make_model: Make, plain: StableDiffusion3Pipeline, guidance: float, monkeypatch: pytest.MonkeyPatch
):
    model = make_model()
    x = ImageNoise(KEYS, model.latent_shape, model.device).draw()
    text, empty = model.encode(PROMPTS), model.encode([""]).expand(2)

    images = sample(model, text, empty, KEYS, 6, guidance)
    expected = (pictures_of(plain, x, 6, guidance) * 255).round().astype(np.uint8)
    assert images.shape == (2, 64, 64, 3)
    assert np.abs(images.astype(int) - expected).max() <= 1  # a pixel on the edge of rounding
    assert (images == expected).mean() > 0.999

    monkeypatch.setattr(model, "decode", lambda x0: x0)
    torch.testing.assert_close(
        sample(model, text, empty, KEYS, 6, guidance),
        pictures_of(plain, x, 6, guidance, output_type="latent"),
        rtol=1e-4,
        atol=1e-5,
    )


def test_decoding_is_the_pipelines(make_model: Make, plain: StableDiffusion3Pipeline):
    model = make_model()
    x0 = latents(model)
    plain.vae.to(memory_format=torch.channels_last)  # as the model's is: convolutions then add in the same order
    pixels = plain.vae.decode(x0 / plain.vae.config.scaling_factor + plain.vae.config.shift_factor).sample.detach()
    expected = [np.asarray(image) for image in plain.image_processor.postprocess(pixels, output_type="pil")]
    images = model.decode(x0)
    assert images.dtype == np.uint8
    assert images.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(images, expected)


def test_each_image_has_noise_of_its_own_key():
    device = torch.device("cpu")
    together, alone = ImageNoise([1, 2], (4, 8, 8), device), ImageNoise([2], (4, 8, 8), device)
    for _ in range(3):
        pair = together.draw()
        assert torch.equal(alone.draw()[0], pair[1])
        assert not torch.equal(pair[0], pair[1])


# LoRA


def test_a_fresh_lora_changes_nothing(make_model: Make, plain: StableDiffusion3Pipeline):
    model = make_model()
    x, text = latents(model), model.encode(PROMPTS)
    with torch.no_grad():
        start = model.velocity(x, 0.5, text, None, 1.0)
        assert torch.equal(start, velocity_of(plain, x, 0.5, PROMPTS))
        with model.without_lora():
            assert torch.equal(start, model.velocity(x, 0.5, text, None, 1.0))


def test_without_lora_is_the_frozen_model(make_model: Make, plain: StableDiffusion3Pipeline):
    model = make_model(stirred=True)
    x, text = latents(model), model.encode(PROMPTS)
    with torch.no_grad():
        moved = model.velocity(x, 0.5, text, None, 1.0)
        with model.without_lora():
            frozen = model.velocity(x, 0.5, text, None, 1.0)
        again = model.velocity(x, 0.5, text, None, 1.0)
    assert torch.equal(frozen, velocity_of(plain, x, 0.5, PROMPTS))
    assert (moved - frozen).abs().max() > 0.01
    assert torch.equal(moved, again)


def test_the_lora_comes_back_after_an_error(make_model: Make):
    model = make_model(stirred=True)
    count = len(model.lora_parameters())
    with pytest.raises(RuntimeError, match="inside"), model.without_lora():
        raise RuntimeError("inside")
    assert len(model.lora_parameters()) == count


def test_only_the_lora_is_trained(make_model: Make):
    model = make_model()
    names = [name for name, parameter in model.transformer.named_parameters() if parameter.requires_grad]
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    # Two blocks of eight projections; the last block has no output for the text.
    assert len(names) == 2 * (8 + 7)
    others = (model.pipe.vae, model.pipe.text_encoder, model.pipe.text_encoder_2)
    assert not any(parameter.requires_grad for part in others for parameter in part.parameters())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_gradient_reaches_every_lora_parameter(make_model: Make, guidance: float):
    model = make_model(stirred=True)
    v = model.velocity(latents(model), 0.5, model.encode(PROMPTS), model.encode([""]).expand(2), guidance)
    v.square().mean().backward()
    last = f"transformer_blocks.{len(model.transformer.transformer_blocks) - 1}."
    for name, parameter in model.transformer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            # What the text asks for in the last block goes nowhere: its answers are thrown away.
            idle = name.startswith(last) and "add_q_proj" in name
            assert bool(parameter.grad.any()) != idle, name


def test_the_guided_gradient_comes_through_both_branches(make_model: Make):
    """d guided = (1 - g) d unconditional + g d conditional."""
    model = make_model(stirred=True)
    x, text, empty = latents(model), model.encode(PROMPTS), model.encode([""]).expand(2)

    def gradient(text: Conditioning, empty: Conditioning | None, guidance: float) -> torch.Tensor:
        model.transformer.zero_grad()
        model.velocity(x, 0.5, text, empty, guidance).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.lora_parameters()])

    expected = 4 * gradient(text, None, 1.0) - 3 * gradient(empty, None, 1.0)
    torch.testing.assert_close(gradient(text, empty, 4.0), expected, rtol=1e-3, atol=1e-2)


def test_the_lora_starts_from_its_seed_and_leaves_the_global_generator_alone(make_model: Make):
    torch.manual_seed(5)
    untouched = torch.randn(3)
    torch.manual_seed(5)
    first = make_model(seed=1).lora_parameters()
    assert torch.equal(torch.randn(3), untouched)
    same, other = make_model(seed=1).lora_parameters(), make_model(seed=2).lora_parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_half_precision_runs_with_a_float32_lora_and_gives_float32(make_model: Make):
    model, exact = make_model(dtype="bfloat16", stirred=True), make_model(stirred=True)
    assert {parameter.dtype for parameter in model.lora_parameters()} == {torch.float32}
    assert model.encode(PROMPTS).tokens_BLD.dtype == torch.bfloat16
    x = latents(model)
    v = model.velocity(x, 0.5, model.encode(PROMPTS), None, 1.0)
    assert v.dtype == torch.float32
    reference = exact.velocity(x, 0.5, exact.encode(PROMPTS), None, 1.0)
    assert ((v - reference).norm() / reference.norm()).item() < 0.05
    assert model.decode(x).dtype == np.uint8


# With T5 and a full autoencoder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three text encoders, 16 latent channels with scale and shift, schedule shift 3, as SD3.5 has them."""
    folder = tmp_path_factory.mktemp("with_t5")
    words = {word for prompt in PROMPTS for word in prompt.split()}
    first, second = clip_tokenizer(words, folder / "first"), clip_tokenizer(words, folder / "second")
    letters = [(chr(code), -4.0) for code in range(33, 127)]
    third = T5TokenizerFast(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=16,
                out_channels=16,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                caption_projection_dim=32,
                joint_attention_dim=128,
                pooled_projection_dim=128,
                pos_embed_max_size=8,
                qk_norm="rms_norm",
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=AutoencoderKL(
                block_out_channels=(8, 8, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=16,
                norm_num_groups=4,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            text_encoder=text_encoder(first, layers=2),
            tokenizer=first,
            text_encoder_2=text_encoder(second, layers=2),
            tokenizer_2=second,
            text_encoder_3=T5EncoderModel(
                T5Config(vocab_size=len(third), d_model=128, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
            ),
            tokenizer_3=third,
        )
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def test_a_pipeline_with_t5_works_alike(make_model: Make, t5_folder: Path):
    plain, length = load(t5_folder), 24
    model = make_model(path=str(t5_folder), max_sequence_length=length)
    assert model.latent_shape == (16, 8, 8)
    assert model.encode(PROMPTS).tokens_BLD.shape == (2, 14 + length, 128)
    x = latents(model)
    with torch.no_grad():
        v = model.velocity(x, 0.5, model.encode(PROMPTS), None, 1.0)
    assert torch.equal(v, velocity_of(plain, x, 0.5, PROMPTS, length))
    images = sample(model, model.encode(PROMPTS), model.encode([""]).expand(2), KEYS, 3, 4.0)
    start = ImageNoise(KEYS, model.latent_shape, model.device).draw()
    expected = (pictures_of(plain, start, 3, 4.0, max_sequence_length=length) * 255).round()
    assert np.abs(images - expected).max() <= 1


# Faults


def test_a_resolution_off_the_models_stride_is_named(make_model: Make):
    with pytest.raises(ModelError, match="resolution 60 is not a multiple of 8"):
        make_model(resolution=60)


def test_a_folder_without_a_pipeline_is_named(make_model: Make, tmp_path: Path):
    with pytest.raises(ModelError, match=f"cannot load .*{tmp_path.name}"):
        make_model(path=str(tmp_path))
