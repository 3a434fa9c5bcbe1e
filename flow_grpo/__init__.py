"""The front door: the `flow-grpo` command and the runner that starts services and gateway on one machine."""
