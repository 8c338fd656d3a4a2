"""The command line: reads arguments and passes a checked spec to the dispatcher. No heavy
imports."""
