"""Text generation: from messages and prompts to streamed text."""
