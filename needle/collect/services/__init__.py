"""The hosted services: Gemini, and any server that speaks OpenAI's API."""
