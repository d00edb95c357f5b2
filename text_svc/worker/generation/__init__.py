"""Generated text: from messages and prompts to streamed answers."""
