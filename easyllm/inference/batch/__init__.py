"""Batch inference: prompts from a file, results in a file, whatever kills come between."""
