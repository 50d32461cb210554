"""Requests and answers of OpenAI's API, from a body's bytes to server-sent events."""
