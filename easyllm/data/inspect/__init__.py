"""Shows what training reads."""
