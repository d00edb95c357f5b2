"""Images and sounds of requests: decoded, checked, placed into prompts."""
