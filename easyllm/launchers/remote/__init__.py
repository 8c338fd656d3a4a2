"""Ranks on other machines: the agent there, and its messages with the owner of the run."""
