"""Attention that stays within documents."""
