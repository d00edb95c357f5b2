"""The endpoints of Anthropic's interface."""
