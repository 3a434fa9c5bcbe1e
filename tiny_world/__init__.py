"""The embedded default: a small picture world, its captions, and the script that pretrains a model on it.

Nothing here scores an image; the figures on the model card come from ``flow-grpo evaluate``.
"""
