"""The native stack: the three services, a file provider and Envoy as processes, one command.

`python -m stack up` starts all of it and stops all of it; `status` and `down` find a running
one through `run/stack.json`.
"""
