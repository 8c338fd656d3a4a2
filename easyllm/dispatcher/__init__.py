"""Runs the stages of a spec in order: the only writer of records."""
