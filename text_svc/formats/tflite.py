"""What a .tflite file says before LiteRT reads it: which operations it needs.

The schema is tensorflow/compiler/mlir/lite/schema/schema.fbs of https://github.com/tensorflow/tensorflow.
LiteRT itself verifies that all of the FlatBuffer lies inside of the file.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from shared.errors import InvalidModelError
from text_svc.formats.flatbuffer import BrokenBufferError, Table

SUFFIX = ".tflite"
IDENTIFIER = b"TFL3"
_IDENTIFIER_AT = 4
# Operations that keep something from one call to the next, by their number in the schema.
_STATEFUL = {
    129: "CALL_ONCE",
    136: "HASHTABLE",
    142: "VAR_HANDLE",
    143: "READ_VARIABLE",
    144: "ASSIGN_VARIABLE",
}
_CUSTOM = 32
# TensorFlow's own operations, which need the whole of TensorFlow.
_FLEX = "Flex"


def check_tflite(path: Path) -> None:
    """Refuses what is no .tflite file, and models that cannot be shared by callers.

    Raises:
        InvalidModelError: it is not a .tflite file, needs TensorFlow's operations, or keeps
            variables from call to call.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size < _IDENTIFIER_AT + len(IDENTIFIER):
                raise BrokenBufferError("it is too short")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                if buffer[_IDENTIFIER_AT : _IDENTIFIER_AT + len(IDENTIFIER)] != IDENTIFIER:
                    raise BrokenBufferError(f"bytes 4 to 7 are not {IDENTIFIER.decode()}")
                codes = [_operation(each) for each in Table.root(buffer).tables(1)]
    except BrokenBufferError as error:
        raise InvalidModelError(f"{path.name} is not a {SUFFIX} file: {error}") from None
    if flex := sorted({name for _, name in codes if name.startswith(_FLEX)}):
        raise InvalidModelError(
            f"{path.name} needs operations of TensorFlow, which LiteRT does not have: "
            f"{', '.join(flex)[:200]}"
        )
    if stateful := [_STATEFUL[code] for code, _ in codes if code in _STATEFUL]:
        raise InvalidModelError(
            f"{path.name} keeps variables from one call to the next ({', '.join(stateful)}), which "
            "its callers would share"
        )


def _operation(code: Table) -> tuple[int, str]:
    """The number of an operation, and the name of a custom one."""
    number = max(code.number(0, "<b"), code.number(3, "<i"))
    return number, code.text(1) if number == _CUSTOM else ""
