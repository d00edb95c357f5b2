"""Tests on a CUDA device: `make test-cuda`."""
