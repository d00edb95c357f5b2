"""Tokenizers: text to token ids, and token ids to streamed text."""
