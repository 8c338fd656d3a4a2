"""Conversations: their messages, their rendering by chat templates, their documents."""
