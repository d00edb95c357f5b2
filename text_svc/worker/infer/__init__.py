"""The RPC `Infer`: the base of its pipelines, and what serves them."""
