"""The untrained parts of the tiny Stable Diffusion 3 pipeline."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

TEXT_LENGTH = 14
"""CLIP tokens of a prompt, begin and end included."""

MAX_SEQUENCE_LENGTH = 1
"""Zero tokens the pipeline appends where T5 is absent; the same in pretraining, rollout and evaluation."""

SHIFT = 3.0
"""Of the sampling schedule: most steps at high noise, where it is decided what the picture shows."""

LATENT_CHANNELS = 4
_TEXT_WIDTH = 64


def clip_tokenizer(words: Iterable[str], folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer that knows each word as one token; unknown words fall apart into pieces.

    Merges grow each word from its last letter, so that they fire at the end of a text and leave most others in
    letters; long words first, so that a short word that ends a long one does not break it. ValueError names a word
    for which that is not enough.
    """
    words = sorted(set(words), key=lambda word: (-len(word), word))
    merges: list[tuple[str, str]] = []
    for word in words:
        suffix = word[-1] + "</w>"
        for letter in reversed(word[:-1]):
            if (letter, suffix) not in merges:
                merges.append((letter, suffix))
            suffix = letter + suffix
    letters = _byte_letters()
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary += [first + second for first, second in merges if first + second not in vocabulary]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TEXT_LENGTH,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for word in words:
        if len(tokenizer.tokenize(word)) != 1:
            raise ValueError(f"the word {word!r} does not stay one token: {tokenizer.tokenize(word)}")
    return tokenizer


def text_encoder(tokenizer: CLIPTokenizer, layers: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=4 * _TEXT_WIDTH,
            projection_dim=_TEXT_WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pipeline(words: Iterable[str], folder: Path, width: int, layers: int, size: int) -> StableDiffusion3Pipeline:
    """A randomly initialised ``StableDiffusion3Pipeline`` without T5 for pictures of ``size`` pixels a side.

    ``width`` and ``layers`` are those of the transformer; ``folder`` receives the tokenizers' files.
    """
    words = list(words)
    tokenizer = clip_tokenizer(words, folder / "tokenizer")
    tokenizer_2 = clip_tokenizer(words, folder / "tokenizer_2")
    transformer = SD3Transformer2DModel(
        sample_size=size // 4,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        caption_projection_dim=width,
        joint_attention_dim=2 * _TEXT_WIDTH,
        pooled_projection_dim=2 * _TEXT_WIDTH,
        pos_embed_max_size=size // 8,
        qk_norm="rms_norm",
    )
    vae = AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(24, 24, 24),
        decoder_block_out_channels=(24, 24, 24),
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=text_encoder(tokenizer, layers=3),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder(tokenizer_2, layers=2),
        tokenizer_2=tokenizer_2,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def teach_words(pipe: StableDiffusion3Pipeline, words: Iterable[str], folder: Path) -> None:
    """Gives a pipeline tokenizers that know these words; tokens it had before keep their embeddings.

    ``folder`` receives the tokenizers' files. New tokens' embeddings are random.
    """
    words = list(words)
    for name in ("", "_2"):
        old_tokenizer, old = getattr(pipe, f"tokenizer{name}"), getattr(pipe, f"text_encoder{name}")
        tokenizer = clip_tokenizer(words, folder / f"tokenizer{name}")
        encoder = text_encoder(tokenizer, old.config.num_hidden_layers)
        carry_over(old, old_tokenizer, encoder, tokenizer)
        pipe.register_modules(**{f"tokenizer{name}": tokenizer, f"text_encoder{name}": encoder.eval()})


def carry_over(old: torch.nn.Module, before: CLIPTokenizer, new: torch.nn.Module, after: CLIPTokenizer) -> None:
    """Gives ``new`` all weights of ``old``; token embeddings follow their tokens, and tokens not known before keep the
    ones that ``new`` has for them."""
    state = old.state_dict()
    [key] = [key for key in state if key.endswith("token_embedding.weight")]
    known, rows = state[key], new.state_dict()[key].clone()
    row_before = before.get_vocab()
    for token, row in after.get_vocab().items():
        if token in row_before:
            rows[row] = known[row_before[token]]
    new.load_state_dict(state | {key: rows})


def load(folder: Path) -> StableDiffusion3Pipeline:
    """A saved pipeline of the world, in float32 whatever it was saved in."""
    return StableDiffusion3Pipeline.from_pretrained(
        folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True, dtype=torch.float32
    )


def _byte_letters() -> list[str]:
    """CLIP's printable stand-in for each of the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]
