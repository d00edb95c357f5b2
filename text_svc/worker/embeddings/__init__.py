"""Embeddings: texts of all callers in micro-batches of like length."""
