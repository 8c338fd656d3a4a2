"""Metrics of training: computed for a step, kept as lines, sent to trackers."""
