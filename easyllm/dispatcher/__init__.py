"""Runs the stages of a spec in order. Nothing else writes records."""
