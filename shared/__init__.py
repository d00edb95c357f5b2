"""Code shared by all services: gRPC server, errors, settings, logs, metrics and model files."""
