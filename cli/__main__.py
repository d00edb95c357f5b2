"""`ml COMMAND`, and the same as `python -m cli COMMAND`."""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> None:
    """Entry point of the script `ml`.

    The process ends at once: gRPC's threads may still decode a frame or wait for stdin, and Python
    aborts when it ends around threads that are inside of such libraries.
    """
    exit_code: object = 0
    try:
        from cli.app import app

        app(prog_name="ml")
    except SystemExit as end:
        exit_code = end.code
    except KeyboardInterrupt:  # before a command has begun
        exit_code = 130
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(exit_code if isinstance(exit_code, int) else int(exit_code is not None))


if __name__ == "__main__":
    main()
