"""Calls from text_svc to a model's process, over one Unix socket.

Both run Python on the cores that the model needs, and gRPC between them would take 0.4 ms of CPU a
streamed token and a millisecond a call from the model. Here, what one turn of an event loop sends
leaves in one piece: the tokens of all callers of a batch are one write and one read.
"""
