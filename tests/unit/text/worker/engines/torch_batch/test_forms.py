"""Compiled forms: how much memory they take together, and callers that leave meanwhile."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from shared.errors import QueueFullError, ShuttingDownError
from text_svc.worker.engines.forms import Form
from text_svc.worker.engines.torch_batch import forms
from text_svc.worker.engines.torch_batch.forms import FormCompiler, TorchForms, Vocabulary

VOCABULARY = Vocabulary(["a", "b", "c", ""], {}, [3])


class Rehearsal:
    """Finds each form to be small."""

    def __init__(self, *_: Any) -> None:
        self.closed = False

    async def check(self, form: Form) -> int:
        return 1 << 20

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> TorchForms:
    monkeypatch.setattr(forms, "Rehearsal", Rehearsal)
    tokenizer: Any = None
    made = TorchForms(tokenizer, 4, [3], ())
    monkeypatch.setattr(made, "_make_vocabulary", lambda: VOCABULARY)
    return made


def has_folder(made: TorchForms) -> bool:
    return made._folder is not None and Path(made._folder.name).exists()


async def test_forms_in_use_take_no_more_than_the_limit(
    made: TorchForms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "MAX_FORM_BYTES", 1)
    monkeypatch.setattr(forms, "MAX_ALIVE_FORM_BYTES", (1 << 20) + 1)
    used = await made.compile(Form("regex", "a"))
    with pytest.raises(QueueFullError, match="this one 1 MiB; the limit is 1 MiB together"):
        await made.compile(Form("regex", "b"))
    del used
    assert await made.compile(Form("regex", "b"))
    assert await made.compile(Form("regex", "c")), "the one that was kept has left"
    await made.close()


async def test_a_thread_goes_on_alone_when_its_caller_leaves(
    made: TorchForms, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()
    inside: list[str] = []
    most = []
    compile_ = FormCompiler.compile

    def slow(self: FormCompiler, kind: str, text: str) -> Any:
        inside.append(text)
        most.append(len(inside))
        begun.set()
        end.wait(10)
        try:
            return compile_(self, kind, text)
        finally:
            inside.remove(text)

    monkeypatch.setattr(FormCompiler, "compile", slow)
    leaving = asyncio.create_task(made.compile(Form("regex", "a")))
    await asyncio.to_thread(begun.wait, 10)
    leaving.cancel()
    staying = asyncio.create_task(made.compile(Form("regex", "b")))
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(made.close())
    await asyncio.sleep(0.01)
    assert has_folder(made), "the thread goes on"
    end.set()
    with pytest.raises(ShuttingDownError):
        await staying
    await closing
    assert not has_folder(made)
    assert most == [1]
    with pytest.raises(ShuttingDownError):
        await made.compile(Form("regex", "c"))
