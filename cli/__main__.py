"""`ml COMMAND`, and the same as `python -m cli COMMAND`."""

from __future__ import annotations

from cli.app import app


def main() -> None:
    """Entry point of the script `ml`."""
    app(prog_name="ml")


if __name__ == "__main__":
    main()
