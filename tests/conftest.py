"""What all tests share: one thread a process, no network, and a tiny random Stable Diffusion 3 pipeline."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import hypothesis
import pytest

if TYPE_CHECKING:
    from trainer.models.sd3 import SD3

# Before the first import of torch or of the hub's client, in this process and in those it starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

# Slow examples are no fault on a shared machine.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline of the small world's words: two layers, 64 pixels, no T5, random weights."""
    import torch

    from tiny_world.pretrain.model import pipeline
    from tiny_world.prompts import WORLDS, every_prompt

    folder = tmp_path_factory.mktemp("pipeline")
    words = {word for prompt in every_prompt(WORLDS["small"]) for word in prompt["prompt"].split()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = pipeline(words, folder, width=32, layers=2, size=64)
        # An untrained decoder paints everything nearly black: let its pictures tell latents apart.
        last = pipe.vae.decoder.layers[-1]
        last.weight.data *= 6
        last.bias.data.fill_(0.5)
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture
def postgresql_schema() -> Iterator[str | None]:
    """The URL of an empty schema in the database that TEST_POSTGRESQL names; None where it names none."""
    server = os.environ.get("TEST_POSTGRESQL")
    if not server:
        yield None
        return
    from sqlalchemy import create_engine, text

    schema, engine = f"jobs_{uuid4().hex}", create_engine(server)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{schema}"
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture
def make_model(pipeline_folder: Path) -> Callable[..., "SD3"]:
    """Loads the tiny pipeline with a LoRA of rank 4; ``stirred`` moves the LoRA away from its start, where it is 0."""
    import torch

    from trainer.config import LoraSettings, ModelConfig
    from trainer.models.sd3 import SD3

    def make(*, stirred: bool = False, seed: int = 0, rank: int = 4, **settings: Any) -> SD3:
        chosen = {"path": str(pipeline_folder), "resolution": 64, "max_sequence_length": 1, "device": "cpu"} | settings
        model = SD3(ModelConfig(**chosen), LoraSettings(rank=rank, alpha=2 * rank), seed)
        if stirred:
            generator = torch.Generator().manual_seed(1)
            for parameter in model.lora_parameters():
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        return model

    return make
