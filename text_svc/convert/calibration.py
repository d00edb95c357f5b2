"""English text that every machine has: the docstrings of the standard library."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from pathlib import Path

# Modules whose docstrings are prose.
_MODULES = (
    *("argparse", "calendar", "copy", "csv", "decimal", "difflib", "doctest", "fractions"),
    *("functools", "gettext", "heapq", "inspect", "ipaddress", "locale", "optparse", "pathlib"),
    *("pickle", "random", "sched", "shutil", "smtplib", "statistics", "string", "subprocess"),
    *("tarfile", "tempfile", "textwrap", "threading", "traceback", "turtle", "typing", "uuid"),
)
_WORDS = range(4, 60)
# Sentences in a long text.
_LONG = 12


def calibration_texts() -> list[str]:
    """About 200 texts, always the same: sentences, single words, long texts, and an empty one.

    With sentences only, a calibrated model was twice as far off on texts of one or two words.
    """
    sentences = _shuffled()
    words = [text.split()[1] for text in sentences[:10]]
    long = [" ".join(sentences[start : start + _LONG]) for start in range(160, 520, _LONG)]
    return ["", *words, *sentences[:160], *long]


def check_texts() -> list[str]:
    """64 more sentences, none of which is in `calibration_texts`."""
    return _shuffled()[600:664]


def _shuffled() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    texts: set[str] = set()
    for path in (path for module in _MODULES for path in _sources(folder, module)):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                texts.update(_pieces(ast.get_docstring(node) or ""))
    ordered = sorted(texts)
    random.Random(0).shuffle(ordered)  # noqa: S311  # the same order each time
    return ordered


def _sources(folder: Path, module: str) -> list[Path]:
    """A module's file, or the files of a package: pathlib is one since Python 3.13."""
    path = folder / f"{module}.py"
    return [path] if path.is_file() else sorted((folder / module).glob("*.py"))


def _pieces(docstring: str) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring)]
    sentences = [text for part in paragraphs for text in re.split(r"(?<=[.!?]) (?=[A-Z])", part)]
    prose = [text for text in {*paragraphs, *sentences} if text[:1].isupper() and ">>>" not in text]
    return [text for text in prose if len(text.split()) in _WORDS]
