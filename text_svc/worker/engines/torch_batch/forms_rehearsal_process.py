"""A process of `rehearsal`: compiles forms of answers as `FormCompiler` does for the engine.

It is told {"vocabulary": path of a file that `Vocabulary.write` has written} first; see
`rehearsal_process`.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from text_svc.worker.light_imports import import_torch

import_torch()

from text_svc.worker.engines.rehearsal_process import TOKENS, serve  # noqa: E402
from text_svc.worker.engines.torch_batch.forms import (  # noqa: E402
    FormCompiler,
    FormMask,
    Vocabulary,
)


class _Stage:
    """A compiler, and tokens that are chosen at random.

    Args:
        setup: names the file of the vocabulary.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        self._vocabulary = Vocabulary.read(Path(setup["vocabulary"]))
        self._compiler = FormCompiler(self._vocabulary)
        self.seconds("regex", "a")  # it reads the vocabulary once

    def seconds(self, kind: str, text: str) -> float:
        """See `Stage`."""
        began = time.process_time()
        mask = FormMask(self._compiler.compile(kind, text))
        chance = random.Random(0)  # noqa: S311
        for _ in range(TOKENS):
            allowed = mask.allowed().nonzero()[:, 0].tolist()
            if not allowed:
                raise ValueError("no token of the model can follow it")
            token = chance.choice(allowed)
            if token in self._vocabulary.end_tokens:
                break
            mask.accept(token)
        return time.process_time() - began


def main() -> None:
    """Entry point; the one argument is the parent's process id."""
    serve(_Stage)


if __name__ == "__main__":
    main()
