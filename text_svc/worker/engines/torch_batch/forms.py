"""Forms of answers on torch, with xgrammar: which tokens may come next.

OpenVINO GenAI has the same library inside, so a form means the same on both.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch

from shared.caller import Weights, caller, priority
from shared.errors import QueueFullError, ShuttingDownError
from shared.turns import TurnLock
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.rehearsal import Rehearsal
from text_svc.worker.tokenizers.fast import FastTokenizer

if TYPE_CHECKING:
    import xgrammar

T = TypeVar("T")

_REHEARSAL = "text_svc.worker.engines.torch_batch.forms_rehearsal_process"
# Compiled forms that are kept for later answers.
MAX_FORM_BYTES = 128 << 20
# Together with those of answers that run or wait.
MAX_ALIVE_FORM_BYTES = 256 << 20


@dataclass(frozen=True)
class Vocabulary:
    """What tokens stand for, by their ids.

    Attributes:
        tokens: their bytes, each as the character of its number; empty for those that no form has,
            special ones above all.
        marks: special tokens that calls of tools may have besides.
        end_tokens: ids that end a generation.
    """

    tokens: list[str]
    marks: dict[int, str]
    end_tokens: list[int]

    @classmethod
    def of(
        cls, tokenizer: FastTokenizer, size: int, end_tokens: Sequence[int], marks: Iterable[str]
    ) -> Vocabulary:
        """The vocabulary of a model. Takes up to a second.

        Args:
            tokenizer: of the model.
            size: number of its scores.
            end_tokens: ids that end a generation.
            marks: texts of special tokens that calls of tools may have.
        """
        marked = {
            token: text.encode().decode("latin-1")
            for token, text in tokenizer.special_tokens_in(list(marks)).items()
            if token < size and token not in end_tokens
        }
        tokens = [tokenizer.token(token)[1].decode("latin-1") for token in range(size)]
        return cls(tokens, marked, list(end_tokens))

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Reads what `write` has written."""
        values = json.loads(path.read_text())
        marks = {int(token): text for token, text in values["marks"].items()}
        return cls(values["tokens"], marks, values["end_tokens"])

    def write(self, path: Path) -> None:
        """Writes it into a file."""
        path.write_text(json.dumps(asdict(self)))


class FormCompiler:
    """Compiles forms for a vocabulary. For one thread at a time."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._compilers: dict[bool, xgrammar.GrammarCompiler] = {}

    def compile(self, kind: str, text: str) -> xgrammar.CompiledGrammar:
        """Compiles a form. Blocks, without the interpreter's lock.

        Raises:
            Exception: it cannot be compiled.
        """
        compiler = self._compiler(with_marks=kind == "calls")
        match kind:
            case "json_schema":
                return compiler.compile_json_schema(text)
            case "regex":
                return compiler.compile_regex(text)
            case "grammar":
                return compiler.compile_grammar(text)
            case "calls":
                return compiler.compile_structural_tag(text)
        raise ValueError(f"a form cannot be a {kind}")

    def _compiler(self, *, with_marks: bool) -> xgrammar.GrammarCompiler:
        # It takes a second to import, which loads without forms need not wait for.
        from xgrammar import GrammarCompiler, TokenizerInfo, VocabType

        if with_marks not in self._compilers:
            tokens = [each.encode("latin-1") for each in self._vocabulary.tokens]
            if with_marks:
                for token, text in self._vocabulary.marks.items():
                    tokens[token] = text.encode("latin-1")
            info = TokenizerInfo(
                tokens,
                VocabType.RAW,
                vocab_size=len(tokens),
                stop_token_ids=self._vocabulary.end_tokens,
            )
            self._compilers[with_marks] = GrammarCompiler(info, max_threads=1, cache_enabled=False)
        return self._compilers[with_marks]


class FormMask:
    """Follows a form through one generation, and hides the tokens that may not come next.

    Args:
        compiled: by `FormCompiler`.
    """

    def __init__(self, compiled: xgrammar.CompiledGrammar) -> None:
        from xgrammar import GrammarMatcher, allocate_token_bitmask

        self._matcher = GrammarMatcher(compiled)
        self._size = compiled.tokenizer_info.vocab_size
        self._bits = allocate_token_bitmask(1, self._size)

    def allowed(self) -> torch.Tensor:
        """The tokens that may come next, shape (vocabulary,), boolean."""
        self._matcher.fill_next_token_bitmask(self._bits)
        # The lowest bit of each number is that of the first token.
        bits = np.unpackbits(np.asarray(self._bits).view(np.uint8), bitorder="little")
        return torch.from_numpy(bits)[: self._size].bool()

    def hide(self, row: torch.Tensor) -> None:
        """Takes all scores of a row, shape (vocabulary,), that may not be chosen next.

        Where no token may come next, the row stays as it is: there is nothing to sample from a row
        without scores, and whatever is chosen, `accept` tells that it is not of the form.
        """
        row[self._size :] = -torch.inf
        kept = row[: self._size].masked_fill(~self.allowed().to(row.device), -torch.inf)
        if kept.isfinite().any():
            row[: self._size] = kept

    def accept(self, token: int) -> bool:
        """Goes on with a token; False if it is none of those that may come next."""
        return bool(self._matcher.accept_token(token))


class TorchForms:
    """The forms of an engine's answers: each is tried once, and compiled once. Close it after use.

    Args:
        tokenizer: of the model.
        size: number of the model's scores.
        end_tokens: ids that end a generation.
        marks: texts of special tokens that calls of tools may have.
        weights: of callers, who take turns.
    """

    def __init__(
        self,
        tokenizer: FastTokenizer,
        size: int,
        end_tokens: Sequence[int],
        marks: Iterable[str],
        weights: Weights | None = None,
    ) -> None:
        self._make_vocabulary = partial(Vocabulary.of, tokenizer, size, end_tokens, marks)
        self._rehearsal: Rehearsal | None = None
        self._compiler: FormCompiler | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._compiled: OrderedDict[Form, xgrammar.CompiledGrammar] = OrderedDict()
        self._weights = weights
        # Those that are in use, too: a compiled form cannot be hashed, so by its id.
        self._alive: WeakValueDictionary[int, xgrammar.CompiledGrammar] = WeakValueDictionary()
        self._turn = TurnLock(weights)
        self._closed = False

    async def compile(self, form: Form) -> xgrammar.CompiledGrammar:
        """Compiles a form, unless it was compiled before.

        Raises:
            As `Rehearsal.check`.
            QueueFullError: the forms of answers that run or wait take too much memory.
            ShuttingDownError: it is closed.
        """
        form = form.compiled()
        if form not in self._compiled:
            await self._in_turn(self._prepare)
            assert self._rehearsal is not None, "it is prepared"
            size = await self._rehearsal.check(form)
            return await self._in_turn(partial(self._compile, form, size))
        self._compiled.move_to_end(form)
        return self._compiled[form]

    async def close(self) -> None:
        """Ends the process that tries forms, once what a thread does for them has ended."""
        self._closed = True
        release = await self._turn.acquire("")
        try:
            if self._rehearsal:
                await self._rehearsal.close()
            if self._folder:
                self._folder.cleanup()
        finally:
            release()

    async def _in_turn(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Does something while nobody else does, to its end even if its caller leaves."""
        release = await self._turn.acquire(caller(), priority())
        doing = asyncio.ensure_future(work())

        def end(_: object) -> None:
            if not doing.cancelled():
                doing.exception()  # its caller may have left
            release()

        doing.add_done_callback(end)
        return await asyncio.shield(doing)

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDownError("the model is being unloaded")

    async def _prepare(self) -> None:
        self._check_open()
        if self._rehearsal is None:
            self._folder = self._folder or tempfile.TemporaryDirectory()
            path = Path(self._folder.name) / "vocabulary.json"
            self._compiler = await asyncio.to_thread(self._make_compiler, path)
            self._rehearsal = Rehearsal(_REHEARSAL, {"vocabulary": str(path)}, self._weights)

    async def _compile(self, form: Form, size: int) -> xgrammar.CompiledGrammar:
        self._check_open()
        if form not in self._compiled:
            assert self._compiler is not None, "it is prepared"
            self._make_room(size)
            compile_ = self._compiler.compile
            made: list[xgrammar.CompiledGrammar] = []
            # The thread would hold its result for a moment longer, and it would count as in use.
            await asyncio.to_thread(lambda: made.append(compile_(form.kind, form.text)))
            self._keep(form, made.pop())
        self._compiled.move_to_end(form)
        return self._compiled[form]

    def _make_room(self, size: int) -> None:
        while (alive := self._alive_bytes()) and alive + size > MAX_ALIVE_FORM_BYTES:
            if not self._compiled:
                raise QueueFullError(
                    f"the forms of answers that run or wait take {alive >> 20} MiB, and this one "
                    f"{size >> 20} MiB; the limit is {MAX_ALIVE_FORM_BYTES >> 20} MiB together",
                    metadata={"limit": str(MAX_ALIVE_FORM_BYTES)},
                )
            self._compiled.popitem(last=False)

    def _alive_bytes(self) -> int:
        return sum(each.memory_size_bytes for each in self._alive.values())

    def _make_compiler(self, path: Path) -> FormCompiler:
        vocabulary = self._make_vocabulary()
        vocabulary.write(path)
        return FormCompiler(vocabulary)

    def _keep(self, form: Form, compiled: xgrammar.CompiledGrammar) -> None:
        self._compiled[form] = self._alive[id(compiled)] = compiled
        size = sum(each.memory_size_bytes for each in self._compiled.values())
        while size > MAX_FORM_BYTES and len(self._compiled) > 1:
            _, oldest = self._compiled.popitem(last=False)
            size -= oldest.memory_size_bytes
