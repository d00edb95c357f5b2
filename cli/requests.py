"""Requests of a stream, which gRPC reads in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def stream(
    rpc: Callable[..., Any], requests: Iterator[T], options: dict[str, Any]
) -> Iterator[Any]:
    """The answers of a stream of requests. The call ends with the block.

    What goes wrong while requests are made ends the call, and is raised at the end of the block:
    gRPC itself would print a traceback and answer UNKNOWN.
    """
    failed: list[Exception] = []

    def guarded() -> Iterator[T]:
        try:
            yield from requests
        except Exception as error:  # noqa: BLE001  # raised below
            failed.append(error)

    call = rpc(guarded(), **options)
    try:
        yield call
    finally:
        call.cancel()
        if failed:
            raise failed[0] from None
