"""gRPC for all services: the server and its interceptors, client channels, call metrics."""
