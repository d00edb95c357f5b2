"""Model files: fetched from a file provider, kept in a cache, checked on every load.

Written by hand, although libraries download files too: the application fixes the wire
(GetModelFile over gRPC, chunks, no listing), and huggingface_hub and its like speak HTTP with
ETag and Range only. A library fits once the application serves HTTP.
"""
