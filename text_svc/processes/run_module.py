"""Runs one of our modules as `python -m` does, started by a process in a sandbox.

`python -m` looks for a module by listing the folders of `sys.path`. In a checkout, one of them also
holds caches and models, so a sandboxed process may not list it, and finds no module there. This
file, run as a script, needs no list; its arguments are the module's name and the module's own.
"""

from __future__ import annotations

import runpy
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

_ROOT = Path(__file__).parents[2]


class _OurPackages:
    """Finds the top-level packages of this project without listing their folder."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in ("ml", "shared", "text_svc"):
            return None
        folder = _ROOT / name
        return spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def command(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module in a new process."""
    return (sys.executable, __file__, module, *arguments)


if __name__ == "__main__":
    sys.meta_path.insert(0, _OurPackages)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
