"""Ranks on other machines: the agent there, and how it speaks with the owner of the run."""
