"""Checks of a model's configuration against itself, the layout and the devices. No I/O."""
