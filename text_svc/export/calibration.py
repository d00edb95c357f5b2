"""English text that is at hand everywhere: what the standard library says about itself."""

from __future__ import annotations

import ast
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


def calibration_texts() -> list[str]:
    """Sentences and paragraphs of the docstrings, 4 to 59 words long, each once, sorted."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts: set[str] = set()
    for module in _MODULES:
        tree = ast.parse((folder / f"{module}.py").read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                texts.update(_pieces(ast.get_docstring(node) or ""))
    return sorted(texts)


def _pieces(docstring: str) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring)]
    sentences = [text for part in paragraphs for text in re.split(r"(?<=[.!?]) (?=[A-Z])", part)]
    prose = [text for text in {*paragraphs, *sentences} if text[:1].isupper() and ">>>" not in text]
    return [text for text in prose if len(text.split()) in _WORDS]
