"""A checkpoint's weights in the formats that other programs read."""
