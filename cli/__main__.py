"""`ml COMMAND`, and the same as `python -m cli COMMAND`."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the script `ml`."""
    try:
        from cli.app import app

        app(prog_name="ml")
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(130)


if __name__ == "__main__":
    main()
