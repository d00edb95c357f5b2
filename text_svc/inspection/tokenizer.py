"""What a tokenizer.json may make of a text, and a trial of it.

Its normaliser is a small program that came with the model: regular expressions can take time that
doubles with each character of a text, and replacements can make a megabyte of one character. Some
of that can be seen in the file; the trial shows more, with texts that patterns are slow at. What
only one text triggers is stopped in the call, see `worker.tokenizing`.
"""

from __future__ import annotations

import base64
import binascii
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shared.errors import InvalidModelError
from shared.process import exit_text
from text_svc.formats.json_files import TOKENIZER

# Steps of normaliser, pre-tokenizer, post-processor and decoder together; the most of a published
# tokenizer is about 20.
MAX_STEPS = 100
# Characters that one character may become, all replacements together.
MAX_EXPANSION = 256
# Bytes of one replacement in a table of characters; the longest of Unicode's own has 33.
MAX_REPLACEMENT_BYTES = 256
MAX_PATTERN_CHARACTERS = 10_000
# A word longer than this is unknown to WordPiece, which takes the square of a word's length.
MAX_WORD_CHARACTERS = 1000
# Tokens that padding, or a post-processor, may add to a text.
MAX_ADDED_TOKENS = 65_536

# Processor time, which a busy machine does not change: to read the file, and for all trial texts.
READ_SECONDS = 60
TRIAL_SECONDS = 5
# A list of 900,000 pieces, as of the largest published models, takes 2.1 GB.
TRIAL_BYTES = 3 << 30
# Of a trial text. What doubles with each character is seen at 40, a power of the length here.
TRIAL_CHARACTERS = 1000
# Characters of patterns that a text is made of.
MAX_TRIED_CHARACTERS = 64

_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_tokenizer(folder: Path, contents: Mapping[str, Any]) -> None:
    """Checks the tokenizer.json of a model, and tries it. Does nothing without one.

    Raises:
        InvalidModelError: it is over a limit, broken, or too slow.
    """
    content = contents.get(TOKENIZER)
    if content is None:
        return
    if not isinstance(content, dict):
        raise InvalidModelError(f"{TOKENIZER} is not a JSON object")
    steps = [step for part in _PARTS for step in _steps(content.get(part))]
    if len(steps) > MAX_STEPS:
        raise InvalidModelError(f"{TOKENIZER} has {len(steps)} steps; the limit is {MAX_STEPS}")
    _check_expansion(steps)
    patterns = [pattern for step in steps for pattern in _patterns(step)]
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            raise InvalidModelError(
                f"{TOKENIZER} has a pattern of {len(pattern)} characters; the limit is "
                f"{MAX_PATTERN_CHARACTERS}"
            )
    if any(True for step in _steps(content.get("decoder")) for _ in _patterns(step)):
        # It would run on the event loop, for each token.
        raise InvalidModelError(f"{TOKENIZER} has a regular expression in its decoder")
    _check_sizes(content)
    _try(folder / TOKENIZER, list(_trial_texts(patterns)))


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a part with a type."""
    if isinstance(value, dict):
        if "type" in value:
            yield value
        for each in value.values():
            yield from _steps(each)
    elif isinstance(value, list):
        for each in value:
            yield from _steps(each)


def _check_expansion(steps: list[dict[str, Any]]) -> None:
    expansion = 1
    for step in steps:
        for name in ("content", "prepend", "replacement"):
            if isinstance(step.get(name), str) and step["type"] != "Strip":
                expansion *= max(1, len(step[name]))
        if step["type"] == "Precompiled":
            _check_charsmap(step.get("precompiled_charsmap"))
    if expansion > MAX_EXPANSION:
        raise InvalidModelError(
            f"{TOKENIZER} can make {expansion} characters of one; the limit is {MAX_EXPANSION}"
        )


def _check_charsmap(value: Any) -> None:
    """Checks a table of characters: a trie's size and the trie, then replacements that end in 0."""
    try:
        table = base64.b64decode(value or "", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InvalidModelError(f"{TOKENIZER} has a table of characters that is broken") from None
    size = int.from_bytes(table[:4], "little")
    if table and (size % 4 or 4 + size > len(table)):
        raise InvalidModelError(f"{TOKENIZER} has a table of characters that is broken")
    longest = max(map(len, table[4 + size :].split(b"\0")), default=0)
    if longest > MAX_REPLACEMENT_BYTES:
        raise InvalidModelError(
            f"{TOKENIZER} replaces a character by {longest} bytes; the limit is "
            f"{MAX_REPLACEMENT_BYTES}"
        )


def _patterns(step: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions of a step."""
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
        yield pattern["Regex"]


def _check_sizes(content: Mapping[str, Any]) -> None:
    """Checks numbers that a text's tokens are padded to, or that a word may have."""
    model, padding = content.get("model"), content.get("padding")
    word = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(word, int) and word > MAX_WORD_CHARACTERS:
        raise InvalidModelError(
            f"{TOKENIZER} takes words of {word} characters; the limit is {MAX_WORD_CHARACTERS}"
        )
    if isinstance(padding, dict):
        strategy = padding.get("strategy")
        fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
        for number in (fixed, padding.get("pad_to_multiple_of")):
            if isinstance(number, int) and number > MAX_ADDED_TOKENS:
                raise InvalidModelError(
                    f"{TOKENIZER} pads to {number} tokens; the limit is {MAX_ADDED_TOKENS}"
                )
    added = _added_tokens(content.get("post_processor"))
    if added > MAX_ADDED_TOKENS:
        raise InvalidModelError(
            f"{TOKENIZER} adds {added} tokens to a text; the limit is {MAX_ADDED_TOKENS}"
        )


def _added_tokens(value: Any) -> int:
    """Values of lists in a post-processor, which are at least as many as the tokens it adds."""
    if isinstance(value, dict):
        return sum(map(_added_tokens, value.values()))
    if isinstance(value, list):
        return len(value) + sum(map(_added_tokens, value))
    return 0


def _trial_texts(patterns: list[str]) -> Iterator[str]:
    """Texts of one repeated character or pair, with an end that makes a pattern go back."""
    tried = dict.fromkeys(("a", " ", "0", "A", ".", "é", "雪", "\n", "ab", "a ", "0,", "ﷺ"))
    characters = dict.fromkeys(
        each for pattern in patterns for each in pattern if each.isprintable()
    )
    tried |= dict.fromkeys(list(characters)[:MAX_TRIED_CHARACTERS])
    for repeated in tried:
        for end in ("", "!", "\0"):
            yield repeated * (TRIAL_CHARACTERS // len(repeated)) + end


def _try(path: Path, texts: list[str]) -> None:
    """Tokenizes the texts in a process of its own, which the kernel ends at a limit.

    Raises:
        InvalidModelError: it did.
    """
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_fd)
        _trial(path, texts, write_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        return
    if code == -signal.SIGPROF:
        seconds = TRIAL_SECONDS if said else READ_SECONDS
        why = f"{said or 'reading it'} takes too long; the limit is {seconds} s"
    elif code == -signal.SIGABRT or code == -signal.SIGKILL:
        why = f"it takes too much memory; the limit is {TRIAL_BYTES >> 20} MiB"
    else:
        why = said or f"its trial ended: {exit_text(code)}"
    raise InvalidModelError(f"{TOKENIZER} cannot be used: {why}")


def _trial(path: Path, texts: list[str], said: int) -> None:
    """The process of a trial: exits with 0, or is killed, or writes what is wrong and exits."""
    separator = ""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (TRIAL_BYTES, TRIAL_BYTES))
        signal.setitimer(signal.ITIMER_PROF, READ_SECONDS)
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        os.write(said, f"tokenizing {len(texts)} texts of {TRIAL_CHARACTERS} characters".encode())
        separator = ": "
        signal.setitimer(signal.ITIMER_PROF, TRIAL_SECONDS)
        for text in texts:
            ids = tokenizer.encode_batch_fast([text])[0].ids
            tokenizer.decode(ids)
    except BaseException as error:  # noqa: BLE001  # a panic of the library is no Exception
        os.write(said, f"{separator}{str(error)[:200]}".encode())
        os._exit(1)
    os._exit(0)
