"""Fetch the models and pictures that the services, the demo and the tests use.

python -m tools.models fetch [NAME...] [--dir FOLDER] [--only text|vision|pictures] [--offline]
python -m tools.models list [--dir FOLDER]
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.models import manifest, model_dir
from tools.models.fetch import Fetcher
from tools.models.files import is_present
from tools.models.manifest import (
    Asset,
    BuildSource,
    LocalSource,
    Manifest,
    MemberSource,
    Source,
    UrlSource,
)
from tools.models.progress import megabytes, reporter


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 1 if a required asset is missing, 2 if the command is wrong."""
    options = _parser().parse_args(arguments)
    assets = manifest.load()
    if options.command == "list":
        print_table(assets, options.dir)
        return 0
    try:
        chosen = assets.select(options.names, options.only)
    except KeyError as error:
        known = ", ".join(asset.name for asset in assets.assets if asset.kind != "input")
        print(f"There is no asset {error.args[0]!r}. The assets are: {known}.", file=sys.stderr)
        return 2
    if not chosen:
        print(f"None of the named assets is of the kind {options.only}.", file=sys.stderr)
        return 2
    try:
        return fetch(assets, chosen, options.dir, offline=options.offline)
    except OSError as error:
        print(f"The models folder cannot be filled: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What was fetched so far is kept.", file=sys.stderr)
        return 130


def fetch(assets: Manifest, chosen: list[Asset], root: Path, *, offline: bool) -> int:
    """Fetch the chosen assets into `root` and say what happened; return the exit status."""
    started = time.monotonic()
    with (
        reporter() as report,
        Fetcher(assets, root, report, offline=offline, local_folders=[model_dir()]) as fetcher,
    ):
        outcomes = fetcher.fetch(chosen)
    seconds = time.monotonic() - started
    counts = Counter(outcome.state for outcome in outcomes)
    if counts["present"] == len(outcomes):
        size = megabytes(sum(asset.size for asset in chosen))
        print(f"All {len(chosen)} assets are in {root} and verified ({size}, {seconds:.1f} s).")
        return 0
    for outcome in outcomes:
        if outcome.message:
            print(outcome.message, file=sys.stderr)
    print(
        f"{counts['fetched']} assets fetched, {counts['present']} were there, "
        f"{counts['off'] + counts['missing']} missing, in {seconds:.1f} s, in {root}."
    )
    return 1 if counts["missing"] else 0


def print_table(assets: Manifest, root: Path) -> None:
    """Print every asset with its size, whether it is present, and its sources in order."""
    table = Table("asset", "folder", "size", "present", "sources", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for asset in assets.assets:
        if asset.kind != "input":
            present = "yes" if is_present(asset, root) else "no"
            sources = ", ".join(describe(source) for source in asset.sources)
            table.add_row(asset.name, asset.folder, megabytes(asset.size), present, sources)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def describe(source: Source) -> str:
    """Say in a few words where a source is."""
    match source:
        case UrlSource(url=url):
            return url.split("/")[2]
        case MemberSource(package=package):
            return f"package {package}"
        case LocalSource(local=local):
            return local
        case BuildSource(inputs=inputs):
            return f"built of {', '.join(inputs)}"


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m tools.models", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--dir",
        type=lambda text: Path(text).expanduser().resolve(),
        default=model_dir(),
        help="the models folder (default: MODEL_DIR, or models/ in the repository)",
    )
    getting = commands.add_parser("fetch", parents=[shared], help="fetch what is missing")
    getting.add_argument("names", nargs="*", metavar="NAME", help="assets by name (default: all)")
    getting.add_argument("--only", choices=("text", "vision", "pictures"))
    getting.add_argument("--offline", action="store_true", help="use only files on this machine")
    commands.add_parser("list", parents=[shared], help="show the assets and whether they are there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
