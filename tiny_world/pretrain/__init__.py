"""Pretraining of the tiny world's model: autoencoder, text encoders, then the flow transformer.

``python -m tiny_world.pretrain --world small --out DIR`` runs or resumes all three stages.
"""
