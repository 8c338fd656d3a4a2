"""The command line: arguments in, a checked spec to the dispatcher; nothing heavy is imported."""
