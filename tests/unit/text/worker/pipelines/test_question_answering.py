"""Answers out of texts: held against transformers' own choice of spans."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from transformers.pipelines.document_question_answering import select_starts_ends

from ml import transformers_pb2 as pb
from shared.errors import (
    InputTooLargeError,
    InternalError,
    InvalidArgumentError,
    MissingFieldError,
)
from tests.support.text_pipeline import Tiny, infer, spec_of
from text_svc.worker.pipelines.question_answering import QuestionAnswerer, TextAnswerOptions

RUNNING = threading.Event()
QUESTION = "what is about paris ?"
TEXT = "👩‍👩‍👧 héllo 🎉 paris 𐍈 , a photo of a cat and a dog on the red sofa"
LONG = "hello paris and music of a cat , science history and the price of apples . " * 20


def answers(folder: Path, text: str, question: str = QUESTION, **options: Any) -> list[pb.Answer]:
    model = QuestionAnswerer(spec_of(folder, "question-answering"))
    request = pb.InferRequest(text=text, prompt=question)
    return list(model.infer(request, TextAnswerOptions(**options), RUNNING).answers)


def logits(folder: Path, text: str) -> tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The tokens of question and text, and the model's logits of starts and ends."""
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    model = t.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(QUESTION, text, return_tensors="pt", return_offsets_mapping=True)
    places = encoded.pop("offset_mapping")[0].tolist()
    with torch.inference_mode():
        output = model(**encoded)
    return (encoded, places), output.start_logits.numpy(), output.end_logits.numpy()


def expected(folder: Path, text: str, top_k: int) -> tuple[list[tuple[int, int, float]], float]:
    """Places of tokens and scores by transformers, and the score of an impossible answer."""
    (encoded, places), start, end = logits(folder, text)
    outside = [which != 1 for which in encoded.sequence_ids(0)]
    outside[0] = False  # [CLS], which stands for "not here"
    starts, ends, scores, null = select_starts_ends(
        start,
        end,
        np.array(outside).astype(int),
        np.ones(len(outside), dtype=int),
        top_k=top_k,
        handle_impossible_answer=True,
    )
    found = zip(starts, ends, scores, strict=True)
    return [(places[s][0], places[e][1], float(score)) for s, e, score in found], null


def test_tokens_as_transformers_chooses_them(tiny: Tiny) -> None:
    wanted, _ = expected(tiny("bert-qa"), TEXT, 5)
    found = answers(tiny("bert-qa"), TEXT, top_k=5, align_to_words=False)
    assert [answer.score for answer in found] == pytest.approx(
        [score for _, _, score in wanted], rel=1e-4
    )
    for answer, (start, end, _) in zip(found, wanted, strict=True):
        assert answer.text == TEXT[start:end] == TEXT[answer.start : answer.end]


def test_whole_words_have_the_scores_of_their_tokens_together(tiny: Tiny) -> None:
    tokens, _ = expected(tiny("bert-qa"), TEXT, 2 * 3 + 10)
    tokenizer = t.AutoTokenizer.from_pretrained(tiny("bert-qa"))
    encoded = tokenizer(TEXT)

    def word(position: int) -> Any:
        return encoded.word_to_chars(encoded.char_to_word(position))

    wanted: dict[str, float] = {}
    for start, end, score in tokens:
        text = TEXT[word(start).start : word(end - 1).end]
        wanted[text] = wanted.get(text, 0) + score
    best = sorted(wanted.items(), key=lambda each: -each[1])[:3]
    found = answers(tiny("bert-qa"), TEXT, top_k=3)
    assert [answer.text for answer in found] == [text for text, _ in best]
    assert [answer.score for answer in found] == pytest.approx([s for _, s in best], rel=1e-4)


def test_an_impossible_answer(tiny: Tiny) -> None:
    _, null = expected(tiny("bert-qa"), TEXT, 1)
    found = answers(tiny("bert-qa"), TEXT, top_k=100, handle_impossible_answer=True)
    nowhere = [answer for answer in found if not answer.text]
    assert [(each.start, each.end) for each in nowhere] == [(0, 0)]
    assert nowhere[0].score == pytest.approx(null, rel=1e-4)
    assert all(each.text for each in answers(tiny("bert-qa"), TEXT, top_k=100))


def test_a_long_text_is_read_in_windows_to_its_end(tiny: Tiny) -> None:
    found = answers(tiny("bert-qa"), LONG, top_k=100, max_seq_len=64, doc_stride=16)
    assert max(answer.end for answer in found) > len(LONG) - 160
    assert all(answer.text == LONG[answer.start : answer.end] for answer in found)
    assert all(0 < answer.score <= 1 for answer in found)
    assert len({(answer.start, answer.end) for answer in found}) == len(found)


def test_windows_are_those_of_the_tokenizer(tiny: Tiny) -> None:
    folder = tiny("bert-qa")
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    model = t.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(
        QUESTION,
        LONG,
        max_length=64,
        stride=16,
        truncation="only_second",
        return_overflowing_tokens=True,
    )
    best = 0.0
    for index in range(len(encoded["input_ids"])):
        ids, types = (
            torch.tensor([encoded[name][index]]) for name in ("input_ids", "token_type_ids")
        )
        with torch.inference_mode():
            output = model(input_ids=ids, token_type_ids=types)
        outside = [which != 1 for which in encoded.sequence_ids(index)]
        outside[0] = False
        mask = np.array(outside).astype(int)
        ones = np.ones(len(outside), dtype=int)
        start, end = output.start_logits.numpy(), output.end_logits.numpy()
        best = max(best, float(select_starts_ends(start, end, mask, ones)[2][0]))
    options = {"max_seq_len": 64, "doc_stride": 16, "align_to_words": False}
    assert answers(folder, LONG, **options)[0].score == pytest.approx(best, rel=1e-4)


def test_a_model_that_reads_the_text_first(tiny: Tiny) -> None:
    folder, text = tiny("xlnet-qa"), "a photo of a cat and a dog"
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    model = t.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(text, QUESTION, return_tensors="pt")
    with torch.inference_mode():
        output = model(**encoded)
    is_text = torch.tensor([which == 0 for which in encoded.sequence_ids(0)])
    may = is_text.clone()
    may[-1] = True  # [CLS]
    first, last = (
        torch.where(may, each[0], -torch.inf).softmax(0)
        for each in (output.start_logits, output.end_logits)
    )
    spans = torch.outer(first * is_text, last * is_text).triu().tril(14)
    found = answers(folder, text, align_to_words=False, top_k=100, handle_impossible_answer=True)
    scores = {answer.text: answer.score for answer in found}
    assert max(scores[text] for text in scores if text) == pytest.approx(
        float(spans.max()), rel=1e-4
    )
    assert scores[""] == pytest.approx(float(first[-1] * last[-1]), rel=1e-4)


def test_what_cannot_be_answered(tiny: Tiny) -> None:
    folder = tiny("bert-qa")
    with pytest.raises(MissingFieldError, match="it is the question"):
        answers(folder, TEXT, " ")
    with pytest.raises(InvalidArgumentError, match="leaves no room for the text: the limit is 128"):
        answers(folder, TEXT, "what ? " * 100)
    with pytest.raises(InvalidArgumentError, match="no words that could be an answer"):
        answers(folder, " \n")


def test_scores_that_are_no_numbers_are_an_error(tiny: Tiny) -> None:
    model = QuestionAnswerer(spec_of(tiny("bert-qa"), "question-answering"))
    with torch.no_grad():
        model.model.qa_outputs.bias.fill_(torch.nan)
    with pytest.raises(InternalError, match="not finite numbers"):
        model.infer(pb.InferRequest(text=TEXT, prompt="?"), TextAnswerOptions(), RUNNING)


async def test_through_infer(tiny: Tiny) -> None:
    response = await infer(tiny("bert-qa"), "qa", text=TEXT, prompt=QUESTION, options={"top_k": 2})
    assert len(response.answers) == 2
    for answer in response.answers:
        assert answer.text == TEXT[answer.start : answer.end]


def test_a_long_question_does_not_make_endless_windows(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("text_svc.worker.infer.answers.MAX_WINDOW_TOKENS", 2000)
    assert answers(tiny("bert-qa"), LONG, max_seq_len=40)
    with pytest.raises(InputTooLargeError, match="windows of 40 tokens are over the limit of 2000"):
        answers(tiny("bert-qa"), LONG, "cat " * 30, max_seq_len=40)
