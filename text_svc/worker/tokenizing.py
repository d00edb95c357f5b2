"""A time limit for tokenizing a text.

A tokenizer's patterns came with the model, and some text may keep one of them busy for hours. The
inspection has tried the tokenizer, but not with that text. No thread can be stopped in the middle
of it: its caller is told, and the process then gives up, and the front loads the model again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial, wraps
from typing import Any, Generic, TypeVar

from tokenizers import Tokenizer

from shared.errors import InvalidArgumentError
from shared.process import exit_if_out_of_memory

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Item = TypeVar("Item")

# Characters that are tokenized at once. A tokenizer takes up to 560 bytes of memory for each, also
# for those that it then truncates.
PIECE_CHARACTERS = 256 << 10

# Until a worker's spec says otherwise. Texts of the largest call take some seconds.
DEFAULT_SECONDS = 30.0
# Between two looks at a thread that tokenizes.
LOOK_SECONDS = 1.0
# After which a process that gives up ends: its answer is sent until then.
LAST_SECONDS = 0.5
_GAVE_UP = 75  # exit code: the model is to be loaded again

_begun: dict[int, float] = {}
_limit = DEFAULT_SECONDS
_giving_up = False


def set_limit(seconds: float) -> None:
    """Sets the limit of this process."""
    global _limit
    _limit = seconds


@contextlib.contextmanager
def tokenizing() -> Iterator[None]:
    """Marks this thread as busy with a tokenizer, and turns the library's panics into errors.

    Raises:
        InvalidArgumentError: the tokenizer cannot process the text.
    """
    thread = threading.get_ident()
    is_outer = thread not in _begun
    _begun.setdefault(thread, time.monotonic())
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # it is no Exception, and has no public class
            raise
        log.warning("the tokenizer fails", extra={"error": str(error)[:200]})
        raise InvalidArgumentError(
            f"the model's tokenizer fails on this text: {str(error)[:200]}"
        ) from None
    finally:
        if is_outer:
            del _begun[thread]


async def in_thread(
    pool: Executor | None, work: Callable[..., Result], *args: Any, **kwargs: Any
) -> Result:
    """Runs work in a thread of a pool, or of the event loop's; its tokenizing has a limit.

    Raises:
        InvalidArgumentError: it takes longer. The process ends soon after.
    """
    watched = Watched(work)
    loop = asyncio.get_running_loop()
    return await watched.result(loop.run_in_executor(pool, partial(watched, *args, **kwargs)))


class Watched(Generic[Result]):
    """Work that will run in a thread; its tokenizing is told from that of other work."""

    def __init__(self, work: Callable[..., Result]) -> None:
        self._work = work
        self._thread = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        self._thread = threading.get_ident()
        try:
            return self._work(*args, **kwargs)
        except MemoryError as error:
            exit_if_out_of_memory(error)
            raise
        finally:
            self._thread = 0

    async def result(self, work: Awaitable[Result]) -> Result:
        """Waits for the work. Cancelling the call takes it out of the queue, if it is in one.

        Raises:
            InvalidArgumentError: its tokenizing takes too long. The process ends soon after.
        """
        future = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({future}, timeout=min(LOOK_SECONDS, _limit)))[0]:
                begun = _begun.get(self._thread)
                if begun is not None and time.monotonic() - begun > _limit:
                    _give_up()
                    raise InvalidArgumentError(
                        f"the model's tokenizer takes longer than {_limit:g} s for this text, "
                        "which is the limit"
                    )
            return future.result()
        finally:
            future.cancel()
            del future, work  # an error has this frame, and must not hold its own future


def _give_up() -> None:
    """Ends this process once its answers are sent: one of its threads never ends."""
    global _giving_up
    if not _giving_up:
        _giving_up = True
        log.error("the tokenizer takes too long: this process ends", extra={"seconds": _limit})
        asyncio.get_running_loop().call_later(LAST_SECONDS, os._exit, _GAVE_UP)


def pieces(items: Sequence[Item], size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Texts, or what holds some, in groups of at most PIECE_CHARACTERS in their order.

    What is longer is a group of its own.

    Args:
        size: characters of an item.
    """
    piece: list[Item] = []
    total = 0
    for item in items:
        if piece and total + size(item) > PIECE_CHARACTERS:
            yield piece
            piece, total = [], 0
        piece.append(item)
        total += size(item)
    if piece:
        yield piece


def has_patterns(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has regular expressions of its own: these may be slow on short texts."""
    parts = (tokenizer.normalizer, tokenizer.pre_tokenizer)
    try:
        states = [json.loads(part.__getstate__()) for part in parts if part is not None]
    except Exception:  # noqa: BLE001  # a part that is written in Python
        return True
    return any(_has_regex(state) for state in states)


def _has_regex(value: Any) -> bool:
    if isinstance(value, dict):
        return "Regex" in value or any(map(_has_regex, value.values()))
    return isinstance(value, list) and any(map(_has_regex, value))


def marks_tokenizing(method: Callable[..., Result]) -> Callable[..., Result]:
    """A method in whose calls this thread is marked, see `tokenizing`."""

    @wraps(method)
    def marked(*args: Any, **kwargs: Any) -> Result:
        with tokenizing():
            return method(*args, **kwargs)

    return marked


def watch_transformers() -> None:
    """Marks the calls of transformers' tokenizers, which pipelines make in their model's thread.

    This replaces an internal method, which the pinned version of transformers has.
    """
    from transformers.tokenization_python import PythonBackend
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    for backend in (PythonBackend, TokenizersBackend):
        method = vars(backend)["_encode_plus"]
        if not hasattr(method, "__wrapped__"):
            setattr(backend, "_encode_plus", marks_tokenizing(method))  # noqa: B010  # mypy
