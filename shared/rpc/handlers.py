"""The handlers that generated code makes of a servicer, to register them with other serialisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc


class _Collector:
    """Stands for a server while generated code registers a servicer, and keeps the handlers."""

    def __init__(self) -> None:
        # Named tuples, contrary to the type stubs of grpc.
        self.by_method: Mapping[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        pass  # the same handlers again

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.by_method = handlers


def add_changed(
    add: Callable[[Any, Any], None],
    servicer: object,
    server: grpc.aio.Server,
    name: str,
    change: Callable[[str, Any], Any],
) -> None:
    """Registers a servicer with changed handlers.

    Args:
        add: the generated function, `add_NAMEServicer_to_server`.
        servicer: what it registers.
        server: where.
        name: the full name of the service.
        change: returns the handler for a method's name and its generated handler.
    """
    generated = _Collector()
    add(servicer, generated)
    handlers = {method: change(method, each) for method, each in generated.by_method.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
