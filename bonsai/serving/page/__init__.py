"""The playground page's own requests, besides OpenAI's routes."""
