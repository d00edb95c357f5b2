"""Real models against the files that they are made of, which OpenVINO runs as they came."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers import AutoModelForTokenClassification as AutoModelForTokens

from ml import transformers_pb2 as pb
from tests.support.optional_models import require_asset
from tests.support.originals import Original, OriginalEncoder
from tests.support.text_pipeline import infer, serve, spec_of

RERANKER, EMBEDDER = "ms-marco-MiniLM-L-12-v2", "bge-small-en-v1.5"
VOICE, ENTITIES = "en_US-joe-medium", "rampart"
CLASSES = {
    RERANKER: AutoModelForSequenceClassification,
    EMBEDDER: AutoModel,
    ENTITIES: AutoModelForTokens,
    VOICE: AutoModel,
}
QUERY = "How many people live in Berlin?"
RIGHT = (
    "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square "
    "kilometers."
)
NEAR = "Berlin is well known for its museums."
WRONG = "New York City is famous for the Metropolitan Museum of Art."
DOCUMENTS = [NEAR, WRONG, RIGHT]
# Scores of the published model, as its card says; 8 bits of weights and activations move them by
# some tenths.
PUBLISHED = {RIGHT: 9.218911, NEAR: -4.0780287}
EIGHT_BITS = 0.6
SENTENCES = (
    "My name is Alex Rivera, I live at 221 Baker Street, Springfield, Illinois 62704.",
    "Écrivez à Zoë Müller, zoe.mueller@example.org, or call 212-555-0147 before noon.",
    "The tide reached the harbour wall, and nobody was there.",
)
PHONEMES = "ðə dˈɑːɡ ɪz ɪn ðə hˈaʊs."  # as eSpeak NG says "The dog is in the house."


@pytest.mark.parametrize("name", CLASSES)
def test_every_weight_of_the_model_is_in_the_file(models: Path, name: str) -> None:
    folder = require_asset(models, name)
    with torch.device("meta"):
        model = CLASSES[name].from_config(AutoConfig.from_pretrained(folder))
    wanted = {key: list(value.shape) for key, value in model.state_dict().items()}
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {key: weights.get_slice(key).get_shape() for key in weights.keys()} == wanted  # noqa: SIM118


async def test_documents_are_ranked_by_the_scores_of_the_original(models: Path) -> None:
    original = OriginalEncoder(models, RERANKER)
    ranking = pb.Ranking(query=QUERY, documents=DOCUMENTS)
    folder = require_asset(models, RERANKER)
    answer = await infer(folder, "reranking", ranking=ranking, options={"raw": True})
    assert [document.index for document in answer.documents] == [2, 0, 1]
    scores = {DOCUMENTS[document.index]: document.score for document in answer.documents}
    wanted = {document: original.output(QUERY, document)[0] for document in DOCUMENTS}
    assert scores == pytest.approx(wanted, abs=EIGHT_BITS)
    assert {each: scores[each] for each in PUBLISHED} == pytest.approx(PUBLISHED, abs=EIGHT_BITS)


async def test_vectors_of_the_first_token_on_torch(models: Path) -> None:
    """tests/integration/test_text_real_models.py has OpenVINO's."""
    original = OriginalEncoder(models, EMBEDDER)
    folder = require_asset(models, EMBEDDER)
    texts = [QUERY, *DOCUMENTS]
    async with serve(spec_of(folder, "feature-extraction", {"engine": "transformers"})) as stub:
        request = pb.GenerateEmbeddingsRequest(texts=texts)
        answer = await stub.GenerateEmbeddings(request)
    for text, vector in zip(texts, answer.embeddings, strict=True):
        first = original.output(text)[0]
        wanted = first / np.linalg.norm(first)
        np.testing.assert_allclose(vector.values, wanted, atol=0.03)  # 8 bits of activations


async def test_entities_are_those_of_the_original(models: Path) -> None:
    """Its 4 bits are of the weights alone, so the numbers are equal too."""
    original = OriginalEncoder(models, ENTITIES)
    labels = json.loads((original.folder / "config.json").read_text())["id2label"]
    assert len(labels) == 35
    folder = require_asset(models, ENTITIES)
    for sentence in SENTENCES:
        logits = original.output(sentence).astype(np.float64)
        scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        tokens = original.tokenizer.encode(sentence).offsets[1:-1]  # not [CLS] and [SEP]
        wanted = [
            (labels[str(each.argmax())], each.max(), sentence[start:end], start, end)
            for each, (start, end) in zip(scores[1:-1], tokens, strict=True)
            if each.argmax() != 0  # O
        ]
        options = {"aggregation": "none"}
        answer = await infer(folder, "token-classification", text=sentence, options=options)
        found = [(one.label, one.score, one.text, one.start, one.end) for one in answer.spans]
        assert [(one[0], *one[2:]) for one in found] == [(one[0], *one[2:]) for one in wanted]
        assert [one[1] for one in found] == pytest.approx([one[1] for one in wanted], abs=1e-4)


async def test_names_and_places_as_whole_words(models: Path) -> None:
    folder = require_asset(models, ENTITIES)
    options = {"aggregation": "first"}
    answer = await infer(folder, "token-classification", text=SENTENCES[0], options=options)
    assert [(one.label, one.text) for one in answer.spans] == [
        ("GIVEN_NAME", "Alex"),
        ("SURNAME", "Rivera"),
        ("BUILDING_NUMBER", "221"),
        ("STREET_NAME", "Baker Street"),
        ("CITY", "Springfield"),
        ("STATE", "Illinois"),
        ("ZIP_CODE", "62704"),
    ]


async def test_the_wave_is_that_of_the_original(models: Path, tmp_path: Path) -> None:
    """Without noise in rhythm and tone, there is one right wave."""
    original = Original(models, VOICE)
    folder = shutil.copytree(require_asset(models, VOICE), tmp_path / "voice")
    config = json.loads((folder / "config.json").read_text())
    quiet = {**config, "noise_scale": 0.0, "noise_scale_duration": 0.0}
    (folder / "config.json").write_text(json.dumps(quiet))
    answer = await infer(folder, "text-to-speech", text=PHONEMES)
    settings = json.loads((original.folder / f"{VOICE}.onnx.json").read_text())
    ids = settings["phoneme_id_map"]
    # Piper's own order: https://github.com/OHF-Voice/piper1-gpl, phoneme_ids.py.
    spoken = [number for each in PHONEMES for number in (*ids[each], *ids["_"])]
    sequence = [*ids["^"], *ids["_"], *spoken, *ids["$"]]
    wanted = original.run(
        input=np.array([sequence], np.int64),
        input_lengths=np.array([len(sequence)], np.int64),
        scales=np.array([0, settings["inference"]["length_scale"], 0], np.float32),
    ).ravel()
    wave = np.frombuffer(answer.audio.data, "<f4")
    assert answer.audio.rate == settings["audio"]["sample_rate"]
    assert wanted.std() > 0.01
    np.testing.assert_allclose(wave, wanted, atol=1e-4)


async def test_what_the_voice_cannot_say_is_refused(models: Path) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="nothing that can be spoken"):
        await infer(require_asset(models, VOICE), "text-to-speech", text="日本")


async def test_whisper_hears_what_the_voice_says(models: Path) -> None:
    spoken = await infer(require_asset(models, VOICE), "text-to-speech", text=PHONEMES)
    heard = await infer(
        require_asset(models, "whisper-tiny.en"),
        "automatic-speech-recognition",
        audio=spoken.audio,
    )
    assert heard.text.strip() == "The dog is in the house."
