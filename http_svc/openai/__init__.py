"""The endpoints of OpenAI's interface."""
