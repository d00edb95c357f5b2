"""Pipelines of texts behind Infer, over gRPC, compared with transformers called directly."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any

import grpc
import pytest
import torch
import transformers

from ml import transformers_pb2 as pb
from shared.errors import CallCancelledError, InvalidModelError
from shared.pipelines import TEXT_PIPELINES
from tests.support.text_pipeline import Tiny, infer, scores, serve, spec_of
from text_svc.worker import tokenizing
from text_svc.worker.length_batches import MAX_BATCH_TOKENS
from text_svc.worker.pipelines import CLASSES, load
from text_svc.worker.pipelines.zero_shot_classification import (
    ZeroShotClassifier,
    ZeroShotOptions,
)


def test_every_text_pipeline_has_a_class() -> None:
    assert {pipeline.name for pipeline in TEXT_PIPELINES} == CLASSES.keys()
    for name in CLASSES.values():
        module, _, class_name = name.partition(":")
        loaded_class = getattr(import_module(f"text_svc.worker.pipelines.{module}"), class_name)
        assert callable(loaded_class.handlers)
        assert callable(loaded_class.report)


def test_a_model_without_an_encoder_is_no_model_of_texts_to_texts(tiny: Tiny) -> None:
    """transformers loads it for them, and its answer would begin with the text."""
    with pytest.raises(InvalidModelError, match="needs a model of encoder and decoder"):
        load(spec_of(tiny("qwen2-audio"), "text2text"))


@pytest.mark.parametrize("multi_label", [False, True])
async def test_zero_shot_classification(tiny: Tiny, multi_label: bool) -> None:
    folder, labels = tiny("bert-nli"), ["music", "paris", "apples"]
    expected = transformers.pipeline("zero-shot-classification", model=str(folder))(
        "a photo of a cat", candidate_labels=labels, multi_label=multi_label
    )
    response = await infer(
        folder,
        "zero-shot",
        text="a photo of a cat",
        labels=labels,
        options={"multi_label": multi_label},
    )
    wanted = dict(zip(expected["labels"], expected["scores"], strict=True))
    assert scores(response) == pytest.approx(wanted, abs=1e-5)


async def test_labels_are_read_in_batches_of_which_a_cancel_spares_the_rest(tiny: Tiny) -> None:
    spec = spec_of(tiny("bert-nli"), "zero-shot")
    pipeline = ZeroShotClassifier(spec)
    labels = [f"label {number}" for number in range(300)]
    request = pb.InferRequest(text="a photo " * 20, labels=labels)
    batches: list[int] = []
    cancelled = threading.Event()

    def seen(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        batches.append(inputs["input_ids"].numel())

    pipeline.model.register_forward_pre_hook(seen, with_kwargs=True)
    answer = pipeline.infer(request, ZeroShotOptions(), cancelled)
    assert len(answer.labels) == len(labels)
    assert max(batches) <= MAX_BATCH_TOKENS
    batches.clear()
    pipeline.model.register_forward_hook(lambda *_: cancelled.set())
    with pytest.raises(CallCancelledError):
        pipeline.infer(request, ZeroShotOptions(), cancelled)
    assert len(batches) == 1


async def test_text_classification(tiny: Tiny) -> None:
    folder = tiny("bert-nli")
    pipeline = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    one = {each["label"]: each["score"] for each in pipeline(["hello world"])[0]}
    two = {each["label"]: each["score"] for each in pipeline({"text": "a cat", "text_pair": "x"})}
    assert scores(await infer(folder, "text-classification", text="hello world")) == pytest.approx(
        one, abs=1e-5
    )
    pair = pb.TextPair(first="a cat", second="x")
    assert scores(await infer(folder, "sentiment-analysis", text_pair=pair)) == pytest.approx(
        two, abs=1e-5
    )
    best = await infer(folder, "text-classification", text="hello world", options={"top_k": 1})
    assert list(scores(best)) == [max(one, key=one.__getitem__)]


async def test_reranking_as_a_cross_encoder(tiny: Tiny) -> None:
    from sentence_transformers import CrossEncoder

    folder, query = tiny("bert-rank"), "the cat"
    documents = ["a dog", "the price of apples in paris " * 9, "x", "what does the cat do", ""]
    expected = CrossEncoder(str(folder), device="cpu").predict([(query, d) for d in documents])
    ranking = pb.Ranking(query=query, documents=documents)
    response = await infer(folder, "cross-encoder", ranking=ranking)
    got = {document.index: document.score for document in response.documents}
    assert got == pytest.approx(dict(enumerate(map(float, expected))), abs=1e-5)
    order = [document.index for document in response.documents]
    assert order == sorted(got, key=got.__getitem__, reverse=True)
    best = await infer(folder, "reranking", ranking=ranking, options={"top_k": 2})
    assert [document.index for document in best.documents] == order[:2]


async def test_pairs_are_tokenized_a_few_at_a_time(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("bert-rank")
    ranking = pb.Ranking(query="a cat", documents=["a photo", "music", "a dog and a cat", "paris"])
    whole = await infer(folder, "reranking", ranking=ranking)
    monkeypatch.setattr(tokenizing, "PIECE_CHARACTERS", 16)
    pieces = await infer(folder, "reranking", ranking=ranking)
    assert [each.index for each in pieces.documents] == [each.index for each in whole.documents]


async def test_a_text_that_would_take_too_much_memory_is_refused(tiny: Tiny) -> None:
    async with serve(spec_of(tiny("bert-rank"), "reranking", max_text_bytes=1000)) as stub:
        fits = pb.Ranking(query="a", documents=["a" * 1000, "b" * 1000])
        assert len((await stub.Infer(pb.InferRequest(ranking=fits))).documents) == 2
        ranking = pb.Ranking(query="a", documents=["a", "b" * 1001])
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Infer(pb.InferRequest(ranking=ranking))
    assert "1001 bytes; the limit is 1000" in (caught.value.details() or "")


async def test_max_length_cuts_what_is_read(tiny: Tiny) -> None:
    from sentence_transformers import CrossEncoder

    folder, query, text = tiny("bert-rank"), "the cat", "the price of apples in paris " * 9
    model = CrossEncoder(str(folder), device="cpu", max_length=12)
    ranking = pb.Ranking(query=query, documents=[text])
    async with serve(spec_of(folder, "reranking", {"max_length": "12"})) as stub:
        cut = await stub.Infer(pb.InferRequest(ranking=ranking))
    assert cut.documents[0].score == pytest.approx(float(model.predict([(query, text)])[0]))
    async with serve(spec_of(tiny("t5"), "text2text", {"max_length": "5"})) as stub:
        for call in (
            lambda: stub.Infer(pb.InferRequest(text="xyz " * 9)),
            lambda: anext(aiter(stub.GenerateText(pb.TextRequest(prompt="xyz " * 9)))),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="the model's limit is 5"):
                await call()


@pytest.mark.parametrize("aggregation", ["none", "simple", "max"])
async def test_token_classification(tiny: Tiny, aggregation: str) -> None:
    folder, text = tiny("bert-ner"), "héllo paris and music"
    pipeline = transformers.pipeline("token-classification", model=str(folder))
    expected = pipeline(text, aggregation_strategy=aggregation)
    response = await infer(folder, "ner", text=text, options={"aggregation": aggregation})
    assert [(span.start, span.end) for span in response.spans] == [
        (one["start"], one["end"]) for one in expected
    ]
    for span, one in zip(response.spans, expected, strict=True):
        assert span.label == one.get("entity_group", one.get("entity"))
        assert span.score == pytest.approx(float(one["score"]), abs=1e-5)
        assert span.text == text[span.start : span.end]


async def test_a_long_text_is_classified_to_its_end(tiny: Tiny) -> None:
    folder, text = tiny("bert-ner"), "héllo paris and music " * 60
    response = await infer(folder, "ner", text=text)
    spans = [(span.start, span.end) for span in response.spans]
    assert spans == sorted(spans)
    assert spans[-1][1] > len(text) - 30
    assert all(span.text == text[span.start : span.end] for span in response.spans)
    with pytest.raises(grpc.aio.AioRpcError, match="the model's limit is 128") as caught:
        await infer(folder, "ner", text=text, options={"aggregation": "none"})
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_tokenizer_there_and_back(tiny: Tiny) -> None:
    folder, text = tiny("bert"), "hello paris"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    response = await infer(folder, "tokenizer", text=text)
    assert [token.id for token in response.tokens] == ids
    assert [token.text for token in response.tokens] == tokenizer.convert_ids_to_tokens(ids)
    assert "".join(text[token.start : token.end] for token in response.tokens) == text
    back = await infer(
        folder, "tokenizer", token_ids=pb.TokenIds(ids=ids), options={"skip_special_tokens": True}
    )
    assert back.text == text


async def test_tokenizer_without_a_fast_one(tiny: Tiny) -> None:
    folder = tiny("marian")
    expected = transformers.AutoTokenizer.from_pretrained(folder)("hello world")["input_ids"]
    response = await infer(folder, "tokenizer", text="hello world")
    assert [token.id for token in response.tokens] == expected


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [("t5", "text2text-generation"), ("marian", "translation"), ("t5", "summarization")],
)
@pytest.mark.parametrize("beams", [1, 3])
async def test_sequence_to_sequence(tiny: Tiny, name: str, pipeline: str, beams: int) -> None:
    folder, text = tiny(name), "hello world what does the image describe ?"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=12, num_beams=beams, do_sample=False)
    expected = tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    options = {"max_new_tokens": 12, "num_beams": beams}
    response = await infer(folder, pipeline, text=text, options=options)
    assert response.text == expected
    assert expected


@pytest.mark.parametrize(("name", "pipeline"), [("t5", "text2text"), ("marian", "translation")])
async def test_sequence_to_sequence_streams_by_generate_text(
    tiny: Tiny, name: str, pipeline: str
) -> None:
    folder, text = tiny(name), "hello world"
    whole = await infer(folder, pipeline, text=text, options={"max_new_tokens": 12})
    async with serve(spec_of(folder, pipeline)) as stub:
        request = pb.TextRequest(prompt=text, max_length=12)
        answers = [answer async for answer in stub.GenerateText(request)]
    assert "".join(answer.text for answer in answers).strip() == whole.text
    assert len(answers) > 2, "it came in pieces"
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].tokens_generated <= 12
    assert answers[-1].finish_reason in ("stop", "length")


async def test_languages_of_a_call_are_its_own(tiny: Tiny) -> None:
    folder, text = tiny("nllb"), "a"
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    def translated(source: str, target: str) -> str:
        tokenizer = transformers.NllbTokenizer.from_pretrained(folder, src_lang=source)
        start = tokenizer.convert_tokens_to_ids(target)
        inputs = tokenizer(text, return_tensors="pt")
        ids = model.generate(**inputs, forced_bos_token_id=start, max_new_tokens=12)
        return tokenizer.decode(ids[0], skip_special_tokens=True)

    pairs = [("deu_Latn", "fra_Latn"), ("", "fra_Latn"), ("fra_Latn", "deu_Latn")]
    wanted = [translated(source or "eng_Latn", target) for source, target in pairs]
    assert len(set(wanted)) == len(wanted)
    async with serve(spec_of(folder, "translation")) as stub:
        for (source, target), expected in zip(pairs, wanted, strict=True):
            options = {"source_language": source, "target_language": target}
            options["max_new_tokens"] = "12"
            answer = await stub.Infer(pb.InferRequest(text=text, options=options))
            assert answer.text == expected.strip()
        with pytest.raises(grpc.aio.AioRpcError, match="no language 'xx'"):
            await stub.Infer(pb.InferRequest(text=text, options={"source_language": "xx"}))


async def test_a_long_text_leaves_an_answer_its_room(tiny: Tiny) -> None:
    folder, text = tiny("marian"), "a" * 40
    whole = await infer(folder, "translation", text=text, options={"max_new_tokens": 60})
    async with serve(spec_of(folder, "translation")) as stub:
        request = pb.TextRequest(prompt=text, max_length=60)
        answers = [answer async for answer in stub.GenerateText(request)]
        long = stub.GenerateText(pb.TextRequest(prompt="a" * 500))
        with pytest.raises(grpc.aio.AioRpcError, match="the model's limit is 64") as caught:
            await anext(aiter(long))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "".join(answer.text for answer in answers).strip() == whole.text
    usage = answers[-1].usage
    assert usage.prompt_tokens + usage.generated_tokens > 64, "more than the model reads"


async def test_an_answer_ends_where_the_decoder_does(tiny: Tiny) -> None:
    response = await infer(tiny("marian"), "translation", text="a" * 30)
    assert response.text


async def test_a_text_that_the_encoder_cannot_hold_is_refused(tiny: Tiny) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="the model's limit is 64") as caught:
        await infer(tiny("marian"), "translation", text="a" * 500)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
