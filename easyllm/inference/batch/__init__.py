"""Batch inference: prompts from a file, results in a file, also after kills."""
