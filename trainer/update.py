"""The policy update: replays an epoch's rollouts against the current LoRA."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.config import LossConfig, OptimizerConfig, RolloutConfig
from trainer.ema import MovingAverage
from trainer.models.sd3 import SD3
from trainer.policy_loss import clipped_policy_loss, kl_to_reference, log_ratio, uses_reference
from trainer.rollout import Rollout, Transition
from trainer.steps import STEPS


class TrainingFailure(Exception):
    """The update produced a value that cannot be trained on; the message says which and where."""


@dataclass
class UpdateStatistics:
    """What an epoch's updates did; means are over the terms that were trained on."""

    terms: int = 0
    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    absolute_log_ratio: float = 0.0
    first_log_ratio: float = 0.0
    """Largest |log ratio| before the first optimizer step: what replaying a rollout gets wrong, ideally 0."""
    gradient_norms: list[float] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        terms = max(1, self.terms)
        return {
            "policy/loss": self.loss / terms,
            "policy/kl": self.kl / terms,
            "policy/clip_fraction": self.clipped / terms,
            "policy/abs_log_ratio": self.absolute_log_ratio / terms,
            "policy/first_log_ratio": self.first_log_ratio,
            "policy/gradient_norm": float(np.mean(self.gradient_norms)) if self.gradient_norms else 0.0,
        }


class PolicyUpdate:
    """Owns the optimizer; one ``run`` is one epoch's update, of ``epochs`` in all."""

    def __init__(
        self,
        model: SD3,
        average: MovingAverage,
        rollout: RolloutConfig,
        loss: LossConfig,
        config: OptimizerConfig,
        epochs: int,
    ) -> None:
        self._model, self._average = model, average
        self._rollout, self._loss, self._config = rollout, loss, config
        self.optimizer = torch.optim.AdamW(
            model.lora_parameters(),
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
        )
        self.steps_done = 0
        self._steps_in_all = epochs * config.updates_per_epoch

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step: a function of the steps done, so that a resumed run repeats it."""
        if not self._config.decay:
            return self._config.learning_rate
        return self._config.learning_rate * max(0.0, 1.0 - self.steps_done / self._steps_in_all)

    def run(self, rollouts: Sequence[Rollout], advantages_SG: NDArray[np.float64]) -> UpdateStatistics:
        """``updates_per_epoch`` optimizer steps, each over an equal share of the batches and all their transitions."""
        statistics = UpdateStatistics()
        share = len(rollouts) // self._config.updates_per_epoch
        for start in range(0, len(rollouts), share):
            self._step(rollouts[start : start + share], advantages_SG, statistics, first=start == 0)
        return statistics

    def _step(
        self, rollouts: Sequence[Rollout], advantages_SG: NDArray[np.float64], statistics: UpdateStatistics, first: bool
    ) -> None:
        terms = sum(
            int(np.isfinite(advantages_SG[slot]).sum()) * len(rollout.transitions)
            for rollout in rollouts
            for slot in rollout.slots
        )
        if terms == 0:
            return
        for rollout in rollouts:
            advantage = torch.from_numpy(advantages_SG[list(rollout.slots)].reshape(-1)).float().to(self._model.device)
            for transition in rollout.transitions:
                self._accumulate(rollout, transition, advantage, terms, statistics, first)
        norm = torch.nn.utils.clip_grad_norm_(self._model.lora_parameters(), self._config.grad_clip)
        if not torch.isfinite(norm):
            raise TrainingFailure(f"the gradient's norm is {norm.item()} at optimizer step {self.steps_done}")
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_done += 1
        statistics.gradient_norms.append(norm.item())
        if self.steps_done % self._config.ema_every == 0:
            self._average.update()

    def _accumulate(
        self,
        rollout: Rollout,
        transition: Transition,
        advantage_B: torch.Tensor,
        terms: int,
        statistics: UpdateStatistics,
        first: bool,
    ) -> None:
        """Adds one transition's gradient. The whole batch runs, as in the rollout, so that the forward pass is the
        same to the bit; images without a score are left out of the sum."""
        t, s, x = transition.t, transition.s, transition.x_BCHW
        arguments = (x, t, rollout.text, rollout.unconditional, self._rollout.guidance)
        v = self._model.velocity(*arguments)
        step = STEPS[self._rollout.step](x, v, t, s, self._rollout.noise_level)
        known = torch.isfinite(advantage_B)
        difference = log_ratio(transition.next_BCHW, step, transition.log_prob_B, transition.mean_BCHW, self._loss)
        policy = clipped_policy_loss(difference[known], advantage_B[known], self._loss, s - t)
        loss = policy.loss
        if uses_reference(self._loss.kl):
            with torch.no_grad(), self._model.without_lora():
                v_reference = self._model.velocity(*arguments)
            reference = STEPS[self._rollout.step](x, v_reference, t, s, self._rollout.noise_level)
            kl = kl_to_reference(step, reference, v, v_reference, s - t, self._loss.kl.form)[known].sum()
            loss = loss + self._loss.kl.beta * kl
            statistics.kl += kl.item()
        if not torch.isfinite(loss):
            raise TrainingFailure(f"the loss is {loss.item()} at t = {t:.4f}, optimizer step {self.steps_done}")
        (loss / terms).backward()
        statistics.terms += int(known.sum())
        statistics.loss += policy.loss.item()
        statistics.clipped += policy.clipped_B.float().sum().item()
        magnitude = policy.log_ratio_B.abs()
        statistics.absolute_log_ratio += magnitude.sum().item()
        if first and known.any():
            statistics.first_log_ratio = max(statistics.first_log_ratio, magnitude.max().item())
