"""All commands of `ml`. Nothing here is slow to import: a command imports what it needs."""

from __future__ import annotations

import typer

from cli.commands import bench, models, speech, stack, text, vectors, vision

app = typer.Typer(
    help="Machine learning services from the command line.",
    epilog="Options stand behind the command: ml models --json",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help takes twice as long to import
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (stack, models, text, vectors, speech, vision, bench):
    part.register(app)
