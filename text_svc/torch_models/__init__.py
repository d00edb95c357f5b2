"""Models on torch, for a worker and for a conversion alike."""
