"""Checkpoints: saved by all ranks, listed, removed, and resumed."""
