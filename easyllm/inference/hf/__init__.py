"""Transformers' continuous batching as an engine."""
