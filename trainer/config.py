"""A run's settings, read from a recipe (YAML) and ``--key=value`` overrides. Imports without torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

URL_VARIABLE = "REWARD_URL"
DATASETS = "datasets:"
"""What the path of a Hugging Face dataset begins with."""
Solver = Literal["euler", "ab2"]
"""Of deterministic steps: ``euler``, as the paper, or ``ab2``, the two-step Adams-Bashforth rule, which costs the same
and needs far fewer steps for the same picture."""
NonNegative = Annotated[FiniteFloat, Field(ge=0)]


class ConfigError(Exception):
    """A recipe that cannot be run; the message names the file and the key."""


def first_line(error: Exception) -> str:
    """An exception's message up to its first line break, or its type where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    adapter: Literal["sd3"] = "sd3"
    path: str
    """A pipeline directory, a hub id, or ``tiny_world:weights/NAME`` for weights that come with the package."""
    resolution: int = Field(512, ge=16)
    """Pixels a side; must suit the autoencoder's stride."""
    max_sequence_length: int = Field(128, ge=1)
    """T5 tokens, or the zero tokens appended where T5 is absent; keep what the model was trained with."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward passes; steps, log-probabilities and stored latents are float32 whatever this says. float16 is
    not offered: without loss scaling the gradients through the frozen layers underflow."""
    device: str = "auto"


class LoraSettings(Section):
    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    targets: tuple[str, ...] = ()
    """Module name suffixes; empty means the adapter's own (the attention projections)."""


class PromptSource(Section):
    path: str
    """JSONL of GenEval metadata lines (``prompt`` is required), a plain text file, one prompt a line, or
    ``datasets:NAME``: a Hugging Face dataset by hub id, folder or file (needs the extra ``datasets``)."""
    subset: str | None = None
    """Of a dataset that has several configurations."""
    split: str = "train"
    """Of a dataset."""
    column: str = "prompt"
    """Of a dataset: where its prompts are. Columns tag and metadata, or GenEval's own, are read where there are any."""
    rewards: dict[str, FiniteFloat]
    """Weight of each reward asked of these prompts."""
    weight: FiniteFloat = Field(1.0, gt=0)
    """Share of the epoch's groups, relative to the other sources."""
    tag_weights: dict[str, NonNegative] | None = None
    """Share of each tag inside this source; tags left out are never drawn. None draws prompts evenly."""
    focus: float = Field(0.0, ge=0, lt=1)
    """How much a prompt's chance, inside its tag, follows the spread of rewards its last groups had: groups of equal
    rewards teach nothing. 0 does not look at it, as the paper."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "PromptSource":
        if not self.rewards:
            raise ValueError("a prompt source needs at least one reward")
        fields = type(self).model_fields
        given = [name for name in ("subset", "split", "column") if getattr(self, name) != fields[name].default]
        if given and not self.path.startswith(DATASETS):
            raise ValueError(f"{', '.join(given)} belongs to a dataset, whose path begins with {DATASETS}")
        if self.tag_weights is not None and sum(self.tag_weights.values()) == 0:
            raise ValueError("tag_weights must not all be zero")
        return self


class WindowConfig(Section):
    """Only the steps of a window are stochastic and trained; the others follow the ODE."""

    size: int = Field(3, ge=1)
    first: int = Field(0, ge=0)
    last: int = Field(5, ge=1)
    """The window lies inside steps [first, last); its place is drawn once an epoch for all groups."""

    @model_validator(mode="after")
    def _fits(self) -> "WindowConfig":
        if self.first + self.size > self.last:
            raise ValueError(f"a window of {self.size} steps does not fit into steps [{self.first}, {self.last})")
        return self


class RolloutConfig(Section):
    groups: int = Field(48, ge=1)
    """Prompts an epoch."""
    group_size: int = Field(24, ge=2)
    """Images of one prompt; advantages compare them with each other."""
    steps: int = Field(10, ge=2)
    """Denoising steps; far fewer than for evaluation (denoising reduction)."""
    step: Literal["flow_sde", "cps"] = "cps"
    solver: Solver = "euler"
    """Of the steps outside the window."""
    noise_level: float = Field(0.8, gt=0)
    """``a``: exploration; for cps in (0, 1], for flow_sde .7 in the paper."""
    shared_noise: bool = False
    """One initial noise for a group: its images part ways at the window, and the steps before it are taken once a
    group. Cheaper, and differences in reward are the window's doing; the paper, with ``credit: noise``, found different
    noise better."""
    credit: Literal["noise", "image"] = "noise"
    """What a step is credited with: the latent it drew (the paper), or the part of it that the final image explains.
    ``image`` makes the gradient far less noisy, so that small runs learn; clip ranges do not carry over. It wants
    ``shared_noise``: else what the initial noise did is credited to the step, and long runs drift."""
    window: WindowConfig | None = None
    """None makes every step but the last stochastic."""
    guidance: float = Field(1.0, ge=1.0)
    """Classifier-free guidance in rollout and training; 1 skips the unconditional branch."""
    groups_per_batch: int = Field(1, ge=1)
    """Groups denoised together; the update replays the same batches, so it changes memory, not the ratio."""

    @model_validator(mode="after")
    def _window_inside(self) -> "RolloutConfig":
        if self.window is not None and self.window.last > self.steps - 1:
            raise ValueError(
                f"window.last is {self.window.last}, but only steps 0 to {self.steps - 2} can be trained: "
                "the last step is never part of the policy"
            )
        if self.step == "cps" and self.noise_level > 1:
            raise ValueError("cps keeps s^2 = std^2 + remaining^2, so noise_level must be at most 1")
        return self


class KLConfig(Section):
    form: Literal["gaussian", "flow_grpo", "velocity"] = "flow_grpo"
    beta: float = Field(0.0, ge=0)
    """Weight of the pull to the frozen model. Not portable between forms; 0 skips the reference forward."""


class LossConfig(Section):
    clip: float = Field(1e-4, gt=0)
    """Ratio range. The log-probability is a mean over latent elements, so the range belongs to one latent
    shape, one kind of step and one ``log_prob`` scale."""
    log_prob: Literal["full", "flow_grpo"] = "full"
    """``full``: Gaussian log-density. ``flow_grpo``: -mean((next - mean)^2), the reference's scale for CPS."""
    advantage_clip: float = Field(5.0, gt=0)
    ratio_norm: bool = False
    """GRPO-Guard: removes the log-ratio's bias and brings all steps to one scale."""
    kl: KLConfig = KLConfig()

    @model_validator(mode="after")
    def _ratio_norm_is_of_the_density(self) -> "LossConfig":
        if self.ratio_norm and self.log_prob != "full":
            raise ValueError("ratio_norm is defined on the full log-density: set log_prob to full")
        return self


class AdvantageConfig(Section):
    statistics: Literal["group", "global"] = "group"
    """Divide by the group's standard deviation (paper) or by the whole epoch's (reference code), taken over the prompts
    that are scored by the same rewards."""
    aggregation: Literal["sum", "normalised"] = "sum"
    """Weighted sum of raw rewards, or of rewards normalised inside their group first."""


class OptimizerConfig(Section):
    learning_rate: float = Field(3e-4, gt=0)
    decay: bool = False
    """Let the learning rate fall linearly to 0 over the run's optimizer steps; false keeps it, as the paper does."""
    weight_decay: float = Field(1e-4, ge=0)
    beta2: float = Field(0.999, gt=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    updates_per_epoch: int = Field(2, ge=1)
    """Optimizer steps an epoch; each takes an equal share of the epoch's batches."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Bound of the moving average's decay min(ema_decay, (1 + n) / (10 + n))."""
    ema_every: int = Field(8, ge=1)
    """Optimizer steps between two updates of the average; short runs want 1."""


class RewardConfig(Section):
    """Where images are scored. A bearer token, if any, is read from the environment variable REWARD_TOKEN."""

    url: str = "http://127.0.0.1:8100"
    """The gateway, or one reward service. The environment variable REWARD_URL wins over this."""
    timeout_s: float = Field(120.0, gt=0)
    """Deadline of one group's scoring, retries included."""
    max_missing: float = Field(0.05, ge=0, lt=1)
    """Share of an epoch's scores that may be missing; above it the run stops and says which reward failed."""
    details: dict[str, str] = {}
    """Rewards trained on by a number or truth value of their details instead of the score: ``{geneval: correct}``
    takes GenEval's verdict."""


class EvaluationConfig(Section):
    prompts: tuple[PromptSource, ...] = ()
    """Held-out prompts; rewards' weights are not used, each reward is reported by itself."""
    steps: int = Field(40, ge=1)
    solver: Solver = "euler"
    images_per_task: int = Field(60, ge=1)
    """Images of each tag (task), spread evenly over its prompts, with fixed seeds."""
    batch: int = Field(24, ge=1)
    every: int = Field(0, ge=0)
    """Epochs between evaluations during training; 0 evaluates only before and after."""
    seed: int = 1_000_003
    embedder: str = ""
    """A CLIPModel directory, hub id or ``tiny_world:`` path: how far apart it sees the images of a prompt is reported
    as their diversity. Empty reports none."""


class TrainConfig(Section):
    name: str
    seed: int = 0
    epochs: int = Field(ge=1)
    model: ModelConfig
    lora: LoraSettings = LoraSettings()
    prompts: tuple[PromptSource, ...] = Field(min_length=1)
    rollout: RolloutConfig = RolloutConfig()
    loss: LossConfig = LossConfig()
    advantages: AdvantageConfig = AdvantageConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    rewards: RewardConfig = RewardConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint_every: int = Field(20, ge=1)
    """Epochs between checkpoints; one is always written at the end."""
    samples_every: int = Field(10, ge=1)
    """Epochs between sample grids."""
    out: str = "runs"
    """Folder that holds the run's folder."""

    @model_validator(mode="after")
    def _batches_divide(self) -> "TrainConfig":
        rollout, updates = self.rollout, self.optimizer.updates_per_epoch
        if rollout.groups % rollout.groups_per_batch:
            raise ValueError(
                f"rollout.groups ({rollout.groups}) is not a multiple of rollout.groups_per_batch "
                f"({rollout.groups_per_batch})"
            )
        batches = rollout.groups // rollout.groups_per_batch
        if batches % updates:
            raise ValueError(f"{batches} batches an epoch cannot be shared evenly by {updates} updates")
        return self


def load_config(
    recipe: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> TrainConfig:
    """Reads a recipe and applies ``--a.b=value`` overrides, whose values are YAML.

    The variable REWARD_URL says where rewards are on this machine or network: it wins over the recipe's
    ``rewards.url``, and an override over both. Raises ConfigError naming the recipe and every key at fault.
    """
    path = Path(recipe)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings")
    if url := (environment or {}).get(URL_VARIABLE):
        _apply(tree, f"--rewards.url={json.dumps(url)}")
    for override in overrides:
        _apply(tree, override)
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'recipe'}: {fault['msg']}" for fault in error.errors()
        )
        raise ConfigError(f"{path}: {faults}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, value = override.removeprefix("--").partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected --key=value")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        below = node.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {override!r}: {parent} is not a section")
        node = below
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
