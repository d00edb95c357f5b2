"""`python -m tests.chaos.up` is `python -m stack` with a library in the services that moves clocks.

Envoy does not start with that library, and the processes of models need not have it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import sys

from stack import __main__ as launcher
from stack import layout

# The variables of the services, as JSON; they end there.
SERVICE_VARIABLES = "CHAOS_SERVICE_VARIABLES"


def with_variables(spec: layout.ChildSpec, variables: dict[str, str]) -> layout.ChildSpec:
    """A service that is started by `run_service`."""
    if not spec.cluster:
        return spec
    command = (sys.executable, "-m", "tests.chaos.up", "service", *spec.command[2:])
    environment = spec.environment | variables
    environment[SERVICE_VARIABLES] = json.dumps([*variables])
    return dataclasses.replace(spec, command=command, environment=environment)


def run_service(name: str) -> None:
    """Becomes a service, whose own children do not get the variables."""
    for variable in (*json.loads(os.environ[SERVICE_VARIABLES]), SERVICE_VARIABLES):
        del os.environ[variable]
    sys.argv = [name]
    runpy.run_module(name, run_name="__main__")


def run_stack() -> int:
    """Becomes the launcher."""
    variables = json.loads(os.environ.pop(SERVICE_VARIABLES))
    children = layout.Layout.children
    layout.Layout.children = lambda *of: [  # type: ignore[method-assign]
        with_variables(spec, variables) for spec in children(*of)
    ]
    return launcher.main()


if __name__ == "__main__":
    if sys.argv[1] == "service":
        run_service(sys.argv[2])
    else:
        sys.exit(run_stack())
