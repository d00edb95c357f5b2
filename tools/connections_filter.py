"""Compiles Envoy's filter of connections: deploy/envoy/connections.wat says what it does."""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "deploy" / "envoy" / "connections.wat"


def connections_filter() -> bytes:
    """The filter as WebAssembly.

    Raises:
        WasmtimeError: the source is not valid.
    """
    # Needed only once a stack starts, and slow to import.
    from wasmtime import wat2wasm

    return bytes(wat2wasm(SOURCE.read_text()))
