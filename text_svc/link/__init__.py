"""Calls from text_svc to a model's process, over one Unix socket.

Both ends run Python on the cores that the model needs. gRPC between them took 0.5 ms of CPU for a
streamed token and the link takes 0.28: what one turn of an event loop sends leaves in one write, so
the tokens of all callers of a batch travel together. `make bench-link` measures both.
"""
