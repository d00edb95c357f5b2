"""The RPC `Infer`: the base of its pipelines, and its handler."""
