"""Flow-GRPO training: rollouts, advantages, policy updates, evaluation and reports."""
