"""The development file provider: serves a model folder as the application would.

`python -m tools.dev_provider --root models/text --port 50052`
"""
