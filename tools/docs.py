"""Writes the tables of README.md: `python -m tools.docs [--check] [--figures]`.

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`; everything else is left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from model_mgmt_svc.settings import ModelMgmtSettings
from shared.pipelines import PIPELINES
from shared.settings import ServerSettings
from text_svc.settings import TextSettings
from vision_svc.settings import VisionSettings

README = Path(__file__).resolve().parent.parent / "README.md"
SERVICES: tuple[type[ServerSettings], ...] = (ModelMgmtSettings, TextSettings, VisionSettings)


def _variable(settings: type[ServerSettings], name: str, field: FieldInfo) -> str:
    if isinstance(field.validation_alias, AliasChoices):
        return str(field.validation_alias.choices[0])
    return f"{settings.model_config['env_prefix']}{name}".upper()


def _default(field: FieldInfo) -> str:
    text = str(field.default).replace(str(Path.home()), "~")
    return f"`{text}`"


def _rows(settings: type[ServerSettings], names: Iterator[str]) -> Iterator[str]:
    for name in names:
        field = settings.model_fields[name]
        yield f"| `{_variable(settings, name, field)}` | {_default(field)} | {field.description} |"


def settings_table() -> str:
    """The variables of each service; those that all have stand once, with their own ports."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    shared = set(ServerSettings.model_fields)
    for settings in SERVICES:
        own = (n for n in settings.model_fields if n not in shared or n.endswith("port"))
        lines += _rows(settings, own)
    lines.append("| **each service, here for text** | | |")
    common = (n for n in ServerSettings.model_fields if not n.endswith("port"))
    lines += _rows(TextSettings, common)
    return "\n".join(lines)


def pipelines_table() -> str:
    """The pipeline types, their aliases and who serves them."""
    lines = ["| pipeline type | also accepted | service |", "| --- | --- | --- |"]
    for pipeline in PIPELINES:
        aliases = ", ".join(f"`{alias}`" for alias in pipeline.aliases)
        lines.append(f"| `{pipeline.name}` | {aliases} | {pipeline.service} |")
    return "\n".join(lines)


# What the benchmarks write, by the name of its place.
FIGURES = {
    f"{name} benchmark": README.parent / f"out/bench/{name}.md"
    for name in ("vision", "vision_profile", "text", "embeddings", "perplexity")
}
TABLES: dict[str, Callable[[], str]] = {"settings": settings_table, "pipelines": pipelines_table}


def place(text: str, name: str, table: str) -> str:
    """The text with what stands between a table's marks replaced.

    Raises:
        SystemExit: the marks are not there.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        sys.exit(f"README.md has no place for the table {name}")
    return f"{before}{start}{table.strip()}\n{end}{after}"


def render(text: str) -> str:
    """The text with the tables that come from the code made anew."""
    for name, table in TABLES.items():
        text = place(text, name, table())
    return text


def render_figures(text: str) -> str:
    """The text with the tables of the benchmarks that have run here since."""
    for name, path in FIGURES.items():
        if path.exists():
            text = place(text, name, path.read_text())
    return text


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when it would")
    parser.add_argument("--figures", action="store_true", help="take in the benchmarks' tables")
    options = parser.parse_args()
    before = README.read_text()
    after = render(render_figures(before) if options.figures else before)
    if options.check:
        if before != after:
            sys.exit("README.md is not up to date: run `make docs`")
    else:
        README.write_text(after)


if __name__ == "__main__":
    main()
