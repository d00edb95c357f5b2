"""Figures and records of the container images: sizes, times to serve, what is in them."""
