"""The demonstration of `make demo`: the main job, through Envoy."""
