"""The words of the command line: flags, overrides, and the configuration they make."""
