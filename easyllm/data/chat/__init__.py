"""Conversations: the one shape that training, batch inference and the server give to them."""
