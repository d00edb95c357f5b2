"""Bad input to Infer, and real speech."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from ml import transformers_pb2 as pb
from tests.support import tiny_models
from tests.support.folders import MakeFolder
from tests.support.pictures import picture, png
from tests.support.speech import speak, wav
from tests.support.stack import MODELS
from tests.support.text_pipeline import serve, spec_of

WHISPER = MODELS / "text" / "openai" / "whisper-tiny.en"


@pytest.fixture(scope="module")
def classifier(module_folder: MakeFolder) -> Iterator[Path]:
    return tiny_models.build("bert-nli", module_folder("models") / "bert-nli")


async def test_bad_requests(classifier: Path) -> None:
    invalid, exhausted = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
    image = png(picture(0))
    cases: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
        ({"labels": ["x"]}, invalid, "takes text"),
        ({"image": image, "labels": ["x"]}, invalid, "takes text; the request has image"),
        ({"text": "", "labels": ["x"]}, invalid, "text is empty"),
        ({"text": "a"}, invalid, "labels"),
        ({"text": "a", "labels": ["x", ""]}, invalid, "labels"),
        ({"text": "a", "labels": ["x"] * 10_000}, exhausted, "limit is 2048"),
        ({"text": "a" * (5 << 20), "labels": ["x"]}, exhausted, "limit is"),
        ({"text": "a", "labels": ["x"], "options": {"colour": "red"}}, invalid, "multi_label"),
        (
            {"text": "a", "labels": ["x"], "options": {"multi_label": "maybe"}},
            invalid,
            "multi_label",
        ),
        ({"text": "a", "labels": ["x"], "options": {"hypothesis_template": "x"}}, invalid, "no {}"),
    ]
    async with serve(spec_of(classifier, "zero-shot")) as stub:
        for fields, code, words in cases:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Infer(pb.InferRequest(**fields))
            assert caught.value.code() is code, fields
            assert words in caught.value.details()
        answer = await stub.Infer(pb.InferRequest(text="nul\0 {} {0}", labels=["{x}", "\0"]))
        assert len(answer.labels) == 2, "it serves on"


@pytest.mark.skipif(not WHISPER.is_dir(), reason=f"there is no {WHISPER}: run `make models`")
async def test_whisper_writes_what_was_spoken() -> None:
    sentences = "The dog is in the house. She is on the sea shore."
    spoken, rate = speak(sentences)
    async with serve(spec_of(WHISPER, "asr")) as stub:
        audio = pb.AudioData(data=wav(spoken, rate))
        response = await stub.Infer(pb.InferRequest(audio=audio))
        silence = np.zeros(rate * 10, np.int16)
        long = np.concatenate([spoken, silence, spoken, silence, spoken])
        longer = await stub.Infer(pb.InferRequest(audio=pb.AudioData(data=wav(long, rate))))
    heard = set(response.text.lower().replace(".", "").replace(",", "").split())
    wanted = set(sentences.lower().replace(".", "").split())
    assert len(heard & wanted) >= 0.7 * len(wanted), response.text
    assert response.segments[-1].end == pytest.approx(len(spoken) / rate, abs=1)
    assert len(longer.text) > 2 * len(response.text), "it is three times as much"
    starts = [segment.start for segment in longer.segments]
    assert starts == sorted(starts)
    assert starts[-1] > 20
