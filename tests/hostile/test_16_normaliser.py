"""A hostile normaliser is refused, or stopped in the call; its model is there again then."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from ml import transformers_pb2 as pb
from tests.support import tiny_models
from tests.support.attack import Attacks
from tests.support.stack import Stack, wait_for
from tests.support.strange_models import Stranger, stranger

SECONDS = 3
# Slow after a word that no trial knows: each part takes some hundredths of a second.
SECRET = {"type": "Replace", "pattern": {"Regex": "(?<=xyzzy)(a|aa)+$"}, "content": "b"}
SLOW_TEXT = ("xyzzy" + "a" * 30 + "!") * 5000


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


REFUSED = {
    "catastrophic": (_replace("(a|aa)+$", "b"), "cannot be used"),
    "expanding": (_replace(".", "x" * 10**6), "1000000 characters of one; the limit is 256"),
    "doubling": (_sequence(*[_replace(".", "xx")] * 40), "characters of one; the limit is 256"),
    "long": (_sequence(*[{"type": "NFC"}] * 10**5), "steps; the limit is 100"),
    "damaged": ({"type": "Precompiled", "precompiled_charsmap": "//////8="}, "broken"),
}


def _bert(folder: Path, normalizer: dict[str, Any]) -> None:
    tiny_models.build("bert", folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": normalizer}))


def _embed(caller: Stranger, model_id: str, text: str) -> None:
    request = pb.GenerateEmbeddingsRequest(model=model_id, texts=[text])
    assert caller.text.GenerateEmbeddings(request, timeout=300).embeddings


def _is_served(caller: Stranger, model_id: str) -> bool:
    with contextlib.suppress(grpc.RpcError):
        _embed(caller, model_id, "hello")
        return True
    time.sleep(0.5)
    return False


@pytest.fixture
def slow_stack(private_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setenv("TEXT_TOKENIZE_SECONDS", str(SECONDS))
    stack = private_stack()
    stack.wait_listening()
    stack.wait_serving()
    return stack


def test_a_normaliser_that_takes_for_ever(attack: Attacks, slow_stack: Stack) -> None:
    """A hostile normaliser is refused, or stopped in the call; its model is there again then."""
    with attack("16 normaliser", slow_stack) as seen, stranger(slow_stack) as caller:
        for name, (normalizer, why) in REFUSED.items():
            made = caller.publish(name, partial(_bert, normalizer=normalizer))
            said = caller.refusal(made, "tokenizer")
            assert said is not None, name
            assert why in said, name
        model_id = caller.publish("secret", partial(_bert, normalizer=SECRET))
        caller.load(model_id, "feature-extraction", engine="transformers")
        _embed(caller, model_id, "hello xyzzy")
        with pytest.raises(grpc.RpcError) as caught:
            _embed(caller, model_id, SLOW_TEXT)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"takes longer than {SECONDS} s for this text" in caught.value.details()
        wait_for("the model's return", partial(_is_served, caller, model_id))
        caller.unload(model_id)
        seen.say(f"{len(REFUSED)} refused at load; a call stopped after {SECONDS} s, model back")
