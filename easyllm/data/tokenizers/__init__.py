"""Vocabularies, the engines that encode with them, and conversions between formats."""
