"""Requests and answers as OpenAI has them, from a body's bytes to server-sent events."""
