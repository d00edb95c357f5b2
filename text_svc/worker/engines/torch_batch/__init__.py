"""Continuous batching on torch: one forward pass for the next token of all."""
