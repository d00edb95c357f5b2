"""Scores of texts: held against sentence-transformers, transformers, and what config.json says."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from ml import transformers_pb2 as pb
from shared.errors import InternalError, InvalidArgumentError, InvalidModelError
from tests.support.sentence_layouts import write
from tests.support.strange_models import change_json
from tests.support.text_pipeline import Tiny, spec_of
from tests.support.tiny_parts import SMALL, bytes_tokenizer, save, widen
from text_svc.worker.infer.labels import LabelOptions, best_first
from text_svc.worker.pipelines.reranking import RankingOptions, Reranker
from text_svc.worker.pipelines.text_classification import TextClassifier
from text_svc.worker.pipelines.zero_shot_classification import (
    ZeroShotClassifier,
    ZeroShotOptions,
)

QUERY = "the cat"
DOCUMENTS = ["a dog", "the price of apples in paris", "x", "what does the cat do", "music"]
RUNNING = threading.Event()


def changed(folder: Path, target: Path, **config: Any) -> Path:
    """A copy of a model with other values in its config.json."""
    shutil.copytree(folder, target)
    change_json(target / "config.json", **config)
    return target


def rank(folder: Path, documents: list[str] = DOCUMENTS, **options: Any) -> list[tuple[int, float]]:
    """Indices and scores of documents, in the order of the answer."""
    model = Reranker(spec_of(folder, "reranking"))
    ranking = pb.Ranking(query=QUERY, documents=documents)
    answer = model.infer(pb.InferRequest(ranking=ranking), RankingOptions(**options), RUNNING)
    return [(document.index, document.score) for document in answer.documents]


def classify(folder: Path, text: str = "a cat", **options: Any) -> dict[str, float]:
    model = TextClassifier(spec_of(folder, "text-classification"))
    answer = model.infer(pb.InferRequest(text=text), LabelOptions(**options), RUNNING)
    assert [each.score for each in answer.labels] == sorted(
        (each.score for each in answer.labels), reverse=True
    )
    return {each.label: each.score for each in answer.labels}


def logits_of(folder: Path, *texts: str) -> torch.Tensor:
    """Of one text or pair, by transformers alone."""
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    model = t.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(**tokenizer(*texts, return_tensors="pt")).logits[0]
    return logits


@pytest.fixture
def saturated(tiny: Tiny, tmp_path: Path) -> Path:
    """A reranker whose logits are all above 30: the sigmoids of some are the same number."""
    folder = tmp_path / "saturated"
    shutil.copytree(tiny("bert-rank"), folder)
    model = t.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias.add_(60)
    model.save_pretrained(folder)
    return folder


def test_scores_that_are_all_one_are_ranked_by_their_logits(saturated: Path) -> None:
    logits = [float(logits_of(saturated, QUERY, document)[0]) for document in DOCUMENTS]
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
    assert order != list(range(len(logits)))
    ranked = rank(saturated)
    assert [score for _, score in ranked] == [1.0] * len(DOCUMENTS)
    assert [index for index, _ in ranked] == order
    assert [index for index, _ in rank(saturated, top_k=2)] == order[:2]


def test_scores_in_half_precision_differ_where_documents_do(tiny: Tiny) -> None:
    model = Reranker(spec_of(tiny("bert-rank"), "reranking", {"dtype": "bfloat16"}))
    read: list[torch.Tensor] = []
    model.model.classifier.register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    ranking = pb.Ranking(query=QUERY, documents=[f"a dog and {n}" for n in range(100, 160)])
    request = pb.InferRequest(ranking=ranking)
    answer = model.infer(request, RankingOptions(raw=True), RUNNING)
    scores = torch.tensor([document.score for document in answer.documents])
    assert len(set(scores.tolist())) > len(set(scores.bfloat16().tolist())) + 10
    reader = model.model.classifier
    wanted = torch.cat(read).float() @ reader.weight[0] + reader.bias
    assert torch.allclose(scores, wanted.sort(descending=True).values, atol=1e-4)


def test_equal_scores_keep_the_order_of_the_request(tiny: Tiny) -> None:
    assert [index for index, _ in rank(tiny("bert-rank"), ["a dog"] * 5)] == [0, 1, 2, 3, 4]


ACTIVATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "identity": {
        "sentence_transformers": {
            "activation_fn": "torch.nn.modules.linear.Identity",
            "version": "5.0.0",
        }
    },
    "old identity": {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    "sigmoid": {
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    },
    "tanh": {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
    "old nothing": {"sbert_ce_default_activation_function": None},
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_the_one_that_the_model_names(
    tiny: Tiny, tmp_path: Path, name: str
) -> None:
    from sentence_transformers import CrossEncoder

    folder = changed(tiny("bert-rank"), tmp_path / "model", **ACTIVATIONS[name])
    expected = CrossEncoder(str(folder), device="cpu").predict([(QUERY, d) for d in DOCUMENTS])
    assert dict(rank(folder)) == pytest.approx(dict(enumerate(map(float, expected))), abs=1e-5)
    raw = {i: float(logits_of(folder, QUERY, each)[0]) for i, each in enumerate(DOCUMENTS)}
    assert dict(rank(folder, raw=True)) == pytest.approx(raw, rel=1e-4)


MODULE = "sentence_transformers.base.modules.transformer.Transformer"


def newer(source: Path, target: Path, place: str = "", **own: Any) -> Path:
    """A cross-encoder in the files of sentence-transformers 5.4."""
    shutil.copytree(source, target / place)
    write(target / "modules.json", [{"idx": 0, "name": "0", "path": place, "type": MODULE}])
    write(target / "config_sentence_transformers.json", {"model_type": "CrossEncoder", **own})
    return target


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_the_activation_is_that_of_newer_files(tiny: Tiny, tmp_path: Path, place: str) -> None:
    source = tiny("bert-rank")
    name = "torch.nn.modules.linear.Identity"
    folder = newer(source, tmp_path / "model", place, activation_fn=name, default_prompt_name=None)
    raw = {i: float(logits_of(source, QUERY, each)[0]) for i, each in enumerate(DOCUMENTS)}
    assert dict(rank(folder)) == pytest.approx(raw, rel=1e-4)


def test_a_reranker_with_a_prompt_or_more_modules_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = newer(tiny("bert-rank"), tmp_path / "model", default_prompt_name="query")
    with pytest.raises(InvalidModelError, match="has a default prompt"):
        rank(folder)
    modules = [{"path": "", "type": MODULE}, {"path": "1", "type": f"{MODULE}.LogitScore"}]
    write(folder / "modules.json", modules)
    with pytest.raises(InvalidModelError, match="lists Transformer, LogitScore; for reranking"):
        rank(folder)


@pytest.mark.parametrize("activation", ["strangers.code.Activation", "torch.nn.MultiheadAttention"])
def test_an_activation_of_the_models_own_is_refused(
    tiny: Tiny, tmp_path: Path, activation: str
) -> None:
    config = {"sentence_transformers": {"activation_fn": activation}}
    folder = changed(tiny("bert-rank"), tmp_path / "model", **config)
    with pytest.raises(InvalidModelError, match="must be one of Identity, Tanh"):
        rank(folder)


def test_a_reranker_of_two_outputs_is_refused(tiny: Tiny) -> None:
    with pytest.raises(InvalidModelError, match="one output; this one has 3"):
        rank(tiny("bert-nli"))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("kind", ["regression", "multi_label_classification", None])
def test_scores_are_what_the_kind_of_problem_means(
    tiny: Tiny, tmp_path: Path, outputs: int, kind: str | None
) -> None:
    source = tiny("bert-nli" if outputs > 1 else "bert-rank")
    folder = changed(source, tmp_path / "model", problem_type=kind)
    logits = logits_of(folder, "a cat")
    wanted = {
        "regression": logits,
        "multi_label_classification": logits.sigmoid(),
        None: logits.softmax(-1) if outputs > 1 else logits.sigmoid(),
    }[kind]
    pipeline = t.pipeline("text-classification", model=str(folder), top_k=None)
    theirs = {each["label"]: each["score"] for each in pipeline(["a cat"])[0]}
    got = classify(folder)
    assert got == pytest.approx(theirs, abs=1e-5)
    assert sorted(got.values()) == pytest.approx(sorted(wanted.tolist()), abs=1e-5)


@pytest.mark.parametrize("function", ["none", "sigmoid", "softmax"])
def test_a_caller_chooses_the_function(tiny: Tiny, function: str) -> None:
    logits = logits_of(tiny("bert-nli"), "a cat")
    wanted = {"none": logits, "sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1)}[function]
    got = classify(tiny("bert-nli"), function_to_apply=function)
    assert sorted(got.values()) == pytest.approx(sorted(wanted.tolist()), abs=1e-5)


def test_labels_without_a_number_of_their_own_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    names = {"0": "a", "1": "b", "3": "c"}
    folder = changed(tiny("bert-nli"), tmp_path / "model", id2label=names)
    with pytest.raises(InvalidModelError, match="numbered 0, 1, 3; they must be"):
        classify(folder)


def test_labels_of_one_name_are_all_there(tiny: Tiny, tmp_path: Path) -> None:
    names = {"0": "a", "1": "a", "2": "b"}
    folder = changed(tiny("bert-nli"), tmp_path / "model", id2label=names, label2id={"a": 1})
    model = TextClassifier(spec_of(folder, "text-classification"))
    answer = model.infer(pb.InferRequest(text="a cat"), LabelOptions(), RUNNING)
    assert sorted(each.label for each in answer.labels) == ["a", "a", "b"]


ENTAILS = {
    "upper case": (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], 2, 0),
    "entailment first": (["entailment", "neutral", "contradiction"], 0, 2),
    "entailment between": (["contradiction", "entailment", "neutral"], 1, 0),
    "neutral first": (["Neutral", "Entailment", "Contradiction"], 1, 2),
    "no contradiction": (["not_entailment", "other", "entailment"], 2, 0),
    "no contradiction, entailment first": (["entailment", "other", "not_entailment"], 0, 2),
}


@pytest.mark.parametrize("order", ENTAILS)
def test_zero_shot_uses_the_labels_by_their_names(tiny: Tiny, tmp_path: Path, order: str) -> None:
    names, entails, contradicts = ENTAILS[order]
    # label2id may be missing or say something else; its values may be texts.
    table = {"id2label": dict(enumerate(names)), "label2id": {"LABEL_0": "0"}}
    folder = changed(tiny("bert-nli"), tmp_path / "model", **table)
    model = ZeroShotClassifier(spec_of(folder, "zero-shot"))
    labels = ["music", "paris", "apples"]
    pairs = torch.stack([logits_of(folder, "a cat", f"This example is {x}.") for x in labels])
    request = pb.InferRequest(text="a cat", labels=labels)
    for several, wanted in (
        (False, pairs[:, entails].softmax(-1)),
        (True, pairs[:, [contradicts, entails]].softmax(-1)[:, 1]),
    ):
        answer = model.infer(request, ZeroShotOptions(multi_label=several), RUNNING)
        got = {each.label: each.score for each in answer.labels}
        assert got == pytest.approx(dict(zip(labels, wanted.tolist(), strict=True)), abs=1e-5)


def test_zero_shot_needs_an_entailment(tiny: Tiny) -> None:
    with pytest.raises(InvalidModelError, match="label entailment and at least one other"):
        ZeroShotClassifier(spec_of(tiny("bert-rank"), "zero-shot"))


def test_a_label_that_leaves_the_text_no_room_is_refused(tiny: Tiny) -> None:
    model = ZeroShotClassifier(spec_of(tiny("bert-nli"), "zero-shot"))
    request = pb.InferRequest(text="a cat", labels=["music", "paris " * 200])
    with pytest.raises(InvalidArgumentError, match=r"labels\[1\] is too long.*limit is 128"):
        model.infer(request, ZeroShotOptions(), RUNNING)


def test_scores_that_are_no_numbers_are_an_error(tiny: Tiny) -> None:
    model = Reranker(spec_of(tiny("bert-rank"), "reranking"))
    unknown = model.processor.convert_tokens_to_ids("x")
    with torch.no_grad():
        model.model.get_input_embeddings().weight[unknown] = torch.nan
    ranking = pb.Ranking(query=QUERY, documents=DOCUMENTS)
    with pytest.raises(InternalError, match=r"ranking.documents\[2\] are not finite"):
        model.infer(pb.InferRequest(ranking=ranking), RankingOptions(), RUNNING)
    with pytest.raises(InternalError, match="not finite"):
        best_first(torch.tensor([torch.inf, 0.0]), torch.tensor([1.0, 0.5]))


def test_a_model_whose_scores_are_no_numbers_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny("bert-nli"), folder)
    model = t.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    model.save_pretrained(folder)
    with pytest.raises(InvalidModelError, match="not finite numbers"):
        classify(folder)


def test_a_text_at_which_the_model_fails_is_named(tiny: Tiny) -> None:
    model = Reranker(spec_of(tiny("bert-rank"), "reranking"))
    culprit, batches = model.processor.convert_tokens_to_ids("x"), []

    def fail(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        batches.append(len(inputs["input_ids"]))
        if (inputs["input_ids"] == culprit).any():
            raise IndexError("index out of range in self")

    model.model.register_forward_pre_hook(fail, with_kwargs=True)
    ranking = pb.Ranking(query=QUERY, documents=["a dog", "a cat", "music", "x"])
    with pytest.raises(InternalError, match=r"the model fails at ranking.documents\[3\]"):
        model.infer(pb.InferRequest(ranking=ranking), RankingOptions(), RUNNING)
    assert max(batches) > 1


def test_a_long_text_of_a_model_without_a_limit_in_its_files(tiny: Tiny) -> None:
    documents = ["a dog", "the price of apples in paris " * 40]
    folder = tiny("roberta-rank")
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    model = t.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    wanted = {}
    for index, document in enumerate(documents):
        inputs = tokenizer(QUERY, document, truncation=True, max_length=39, return_tensors="pt")
        with torch.inference_mode():
            wanted[index] = float(model(**inputs).logits[0, 0].sigmoid())
    assert dict(rank(folder, documents)) == pytest.approx(wanted, abs=1e-5)


def _save_decoder(folder: Path, make: Callable[..., Any], tokenizer: Any, **config: Any) -> Path:
    torch.manual_seed(0)
    model = make(vocab_size=len(tokenizer), num_labels=1, bos_token_id=0, eos_token_id=1, **config)
    widen(model)
    save(folder, model, tokenizer)
    return folder


def _gpt2(**config: Any) -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return t.GPT2ForSequenceClassification(t.GPT2Config(**sizes, **config))


def _qwen2(**config: Any) -> Any:
    sizes = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return t.Qwen2ForSequenceClassification(t.Qwen2Config(**sizes, **config))


def _xlnet(**config: Any) -> Any:
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}
    return t.XLNetForSequenceClassification(t.XLNetConfig(**sizes, **config))


def _decoder_tokenizer(pad: str | None, side: str, ends: bool) -> Any:
    from tokenizers import processors

    core = bytes_tokenizer(["<s>", "</s>", "<pad>"])
    if ends:
        core.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
        )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token=pad, padding_side=side
    )


@pytest.mark.parametrize(("side", "ends"), [("left", True), ("right", False)])
@pytest.mark.parametrize(("pad", "pad_id"), [(None, None), ("</s>", 1), ("<pad>", None), (None, 2)])
@pytest.mark.parametrize("make", [_gpt2, _qwen2, _xlnet])
def test_a_decoder_scores_each_text_as_if_it_were_alone(
    tmp_path: Path,
    make: Callable[..., Any],
    pad: str | None,
    pad_id: int | None,
    ends: bool,
    side: str,
) -> None:
    tokenizer = _decoder_tokenizer(pad, side, ends)
    folder = _save_decoder(tmp_path, make, tokenizer, pad_token_id=pad_id)
    wanted = {
        index: float(logits_of(folder, QUERY, document)[0])
        for index, document in enumerate(DOCUMENTS)
    }
    assert len({round(score, 2) for score in wanted.values()}) > 3
    assert dict(rank(folder, raw=True)) == pytest.approx(wanted, abs=2e-3, rel=1e-3)
