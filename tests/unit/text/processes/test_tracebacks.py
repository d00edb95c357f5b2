"""What processes that hang write of themselves."""

from __future__ import annotations

from pathlib import Path

from text_svc.processes.tracebacks import MAX_BYTES, read_tracebacks

# No process has this number: Linux's largest is 4 Mi.
NOBODY = 1 << 23


async def test_only_the_beginning_of_a_file_is_read(tmp_path: Path) -> None:
    with (tmp_path / str(NOBODY)).open("wb") as file:
        file.write(b"here")
        file.truncate(1 << 40)  # more than fits into memory
    text = await read_tracebacks(tmp_path, [NOBODY, NOBODY + 1])
    assert text.startswith(f"process {NOBODY}:\nhere")
    assert len(text) < MAX_BYTES + 100
    assert text.endswith(f"process {NOBODY + 1}:\nit wrote no tracebacks\n")
