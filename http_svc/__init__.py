"""The models over HTTP, as clients of OpenAI and Anthropic expect them. It keeps no state."""
