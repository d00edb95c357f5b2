"""Calls from text_svc to a model's process, over one Unix socket.

Both ends run Python on the cores that the model needs. With gRPC between them, both together took
0.5 ms of CPU for a streamed token; with the link they take 0.28. What one turn of an event loop
sends leaves in one write, so the tokens of all callers of a batch travel together. What the link
itself costs, beside gRPC, `make bench-link` measures.
"""
