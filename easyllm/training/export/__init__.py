"""A checkpoint's weights in the formats that others read."""
