"""Continuous batching on torch: the generations of all callers share each forward pass.

It serves what OpenVINO does not: a forced `engine=transformers`, models that do not convert, and
CUDA. On a CPU of two cores it generates 76 and 126 tokens/s for 8 and 16 callers, where
`transformers serve` generates 53 and 69. It has not been measured on a CUDA card: if vLLM or
transformers' own ContinuousBatchingManager is faster there, that one should take its place on CUDA.

A forward pass uses transformers' models as they are, with a KV cache and an attention function of
our own (`kv_cache`, `model`). `eligibility` decides for each model whether that is right, by its
structure and by a test of its numbers. `decoder` runs the steps, `sampler` picks the tokens, and
`engine` connects them to the event loop.
"""
