"""Checks of a run by itself, at its first step."""
