"""Metrics of training: computed of a step, kept as lines, fed to trackers."""
