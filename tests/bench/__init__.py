"""Benchmarks: each starts what it measures and writes into out/bench."""
