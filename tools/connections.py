"""Compiles Envoy's filter of connections into envoy.yaml: `python -m tools.connections`."""

from __future__ import annotations

import base64
import re
import textwrap
from pathlib import Path

from wasmtime import wat2wasm

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "deploy" / "envoy" / "connections.wat"
CONFIG = ROOT / "envoy.yaml"
_BYTES = re.compile(r'( +inline_bytes: )"[^"]*"')


def compiled() -> bytes:
    """The filter as WebAssembly.

    Raises:
        WasmtimeError: the source is not valid.
    """
    return bytes(wat2wasm(SOURCE.read_text()))


def main() -> None:
    """Entry point."""
    text = CONFIG.read_text()
    (place,) = _BYTES.finditer(text)
    margin = " " * (len(place[1]) - len(place[1].lstrip()) + 2)
    lines = textwrap.wrap(base64.b64encode(compiled()).decode(), 96 - len(margin))
    # A backslash at the end of a line of a quoted string joins it with the next one.
    quoted = f'{place[1]}"\\\n' + "".join(f"{margin}{line}\\\n" for line in lines) + f'{margin}"'
    CONFIG.write_text(text[: place.start()] + quoted + text[place.end() :])


if __name__ == "__main__":
    main()
