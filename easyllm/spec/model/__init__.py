"""Checks of a model's configuration by itself and with the layout and the devices. No I/O."""
