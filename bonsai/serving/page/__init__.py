"""What the playground's page asks for beside OpenAI's routes."""
