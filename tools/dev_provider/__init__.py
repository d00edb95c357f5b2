"""The development file provider: the application's role on the wire, played from a model folder.

`python -m tools.dev_provider --root models/text --port 50052`
"""
