"""The record of earlier versions: an SQLite file with a table `wishes`, read once."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from model_mgmt_svc.record import MAX_RECORD_BYTES, RecordError

# Its name, beside the record of now.
OLD_RECORD = "wishes.db"

# Reading takes milliseconds; a file with a view in the table's place could compute for ever.
READ_SECONDS = 5.0
# Steps of SQLite between two looks at the clock.
_STEPS = 10_000

_OPTIONS = TypeAdapter(dict[str, str])


def read_old_record(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of the old record, with the fields of a `DesiredModel`; their types are not
    checked.

    Raises:
        RecordError: it is no such record.
        OSError: it cannot be read now, such as while another process has it locked.
    """
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise RecordError(f"it has more than {MAX_RECORD_BYTES} bytes")
    give_up = time.monotonic() + READ_SECONDS
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=READ_SECONDS)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_RECORD_BYTES)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.set_progress_handler(lambda: time.monotonic() > give_up, _STEPS)
            size = 0
            for row in connection.execute("SELECT model_id, pipeline_type, options FROM wishes"):
                size += sum(len(str(value)) for value in row)
                if size > MAX_RECORD_BYTES:  # its values may be computed
                    raise RecordError(f"it has more than {MAX_RECORD_BYTES} bytes")
                model_id, pipeline_type, options = row
                yield {
                    "model_id": model_id,
                    "pipeline_type": pipeline_type,
                    "options": _OPTIONS.validate_json(options),
                }
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # none if text is no UTF-8
        if code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_INTERRUPT):
            raise RecordError(str(error)) from error  # no such table, or it takes too long
        raise OSError(0, str(error)) from error
    except (sqlite3.Error, ValidationError) as error:
        raise RecordError(str(error)) from error
