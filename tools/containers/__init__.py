"""Measures and records of the container images: sizes, start times, contents."""
