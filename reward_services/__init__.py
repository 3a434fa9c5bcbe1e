"""Rewards as HTTP services: one app around any scorer, and a folder for each reward."""
