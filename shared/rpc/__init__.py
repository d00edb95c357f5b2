"""gRPC as every service speaks it: the server, its interceptors, channels, the calls' figures."""
