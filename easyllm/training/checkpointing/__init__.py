"""Checkpoints: saved by all ranks, listed, removed, and taken up again."""
