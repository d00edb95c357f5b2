"""Embeddings: the texts of all callers, in micro-batches of similar length."""
