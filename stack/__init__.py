"""The launcher: runs the three services, Envoy and a file provider as native processes.

`python -m stack up` starts them and stops them again; `status` and `down` find a running stack
through `run/stack.json`.
"""
