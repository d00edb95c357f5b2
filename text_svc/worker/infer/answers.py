"""The answers that a model finds in a text or in the words of a document: spans of its tokens.

Scores are those of transformers' pipelines: softmaxes of the tokens that may begin and end an
answer, multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from shared.errors import (
    InputTooLargeError,
    InternalError,
    InvalidArgumentError,
    MissingFieldError,
)
from text_svc.worker.infer.options import NoOptions
from text_svc.worker.tokenizing import tokenizing

# Percent of a window that the next one may share: with more, a long text has too many of them.
MAX_SHARED = 75
# Tokens of all windows of a text together, each of which takes some 250 bytes: several times those
# of the longest text, unless the question leaves little room for it in each window.
MAX_WINDOW_TOKENS = 1 << 21


class AnswerOptions(NoOptions):
    """Options of pipelines that find answers; their names are transformers' own.

    Attributes:
        top_k: answers to return at most.
        max_answer_len: tokens of an answer.
        max_seq_len: tokens of the question with a part of the text; 0 is the pipeline's default.
        doc_stride: tokens that two parts share; 0 is the pipeline's default.
        handle_impossible_answer: whether "the text does not say" may be an answer.
    """

    top_k: int = Field(1, ge=1, le=100)
    max_answer_len: int = Field(15, ge=1, le=1000)
    max_seq_len: int = Field(0, ge=0)
    doc_stride: int = Field(0, ge=0)
    handle_impossible_answer: bool = False


@dataclass(frozen=True)
class Span:
    """Tokens of a window, from `first` to `last`, that may be the answer."""

    first: int
    last: int
    score: float


def required_question(prompt: str) -> str:
    """The question of a request.

    Raises:
        MissingFieldError: there is none.
    """
    if not prompt.strip():
        raise MissingFieldError("prompt is empty; it is the question", field="prompt")
    return prompt


def in_windows(
    tokenizer: Any, question: Any, text: Any, asked: int, limit: int, shared: int, **more: Any
) -> Any:
    """The question with each part of a text, as the tokenizer's lists, one for each window.

    Args:
        tokenizer: a fast one.
        question: comes first, unless the tokenizer pads on the left.
        text: a text, or its words.
        asked: tokens of the question.
        limit: tokens of a window.
        shared: tokens that two windows share, at most MAX_SHARED percent.
        more: arguments of the tokenizer.

    Raises:
        InvalidArgumentError: the question leaves no room for the text.
        InputTooLargeError: the windows have more tokens than MAX_WINDOW_TOKENS.
    """
    room = limit - asked - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 2:
        raise InvalidArgumentError(
            f"prompt has {asked} tokens, which leaves no room for the text: the limit is {limit} "
            "tokens of both",
            field="prompt",
            metadata={"limit": str(limit)},
        )
    shared = min(shared, room * MAX_SHARED // 100)
    first = tokenizer.padding_side == "right"
    split = {name: value for name, value in more.items() if name == "is_split_into_words"}
    with tokenizing():
        tokens = len(tokenizer(text, add_special_tokens=False, **split)["input_ids"])
        windows = max(1, -(-(tokens - shared) // (room - shared)))
        if windows * limit > MAX_WINDOW_TOKENS:
            raise InputTooLargeError(
                f"the text has {tokens} tokens, of which {room} fit beside those of prompt; its "
                f"{windows} windows of {limit} tokens are over the limit of {MAX_WINDOW_TOKENS} "
                "tokens: shorten prompt or the text",
                metadata={"limit": str(MAX_WINDOW_TOKENS)},
            )
        return tokenizer(
            *((question, text) if first else (text, question)),
            truncation="only_second" if first else "only_first",
            max_length=limit,
            stride=shared,
            return_overflowing_tokens=True,
            **more,
        )


def best_spans(
    starts: torch.Tensor,
    ends: torch.Tensor,
    is_text: torch.Tensor,
    null: int | None,
    count: int,
    max_length: int,
) -> tuple[list[Span], float]:
    """The likeliest answers in a window, best first, and the score of "it is not here".

    Args:
        starts: logits of the first token, shape (tokens,).
        ends: logits of the last token.
        is_text: the tokens that an answer may have, true or false.
        null: the token that stands for "not here".
        count: of answers at most.
        max_length: tokens of an answer.

    Raises:
        InternalError: a logit is not a finite number.
    """
    if not (starts.isfinite().all() and ends.isfinite().all()):
        raise InternalError("the model's scores of tokens are not finite numbers")
    allowed = is_text.clone()
    if null is not None:
        allowed[null] = True
    first, last = (
        torch.where(allowed, logits.float().cpu(), -torch.inf).softmax(0)
        for logits in (starts, ends)
    )
    nowhere = 0.0 if null is None else float(first[null] * last[null])
    first, last = first * is_text, last * is_text
    tokens = len(first)
    # Row n: the answers of n + 1 tokens, by their first.
    scores = torch.zeros(min(max_length, tokens), tokens)
    for more, row in enumerate(scores):
        row[: tokens - more] = first[: tokens - more] * last[more:]
    best = scores.flatten().topk(min(count, scores.numel()))
    spans = [
        Span(index % tokens, index % tokens + index // tokens, score)
        for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        if score > 0
    ]
    return spans, nowhere
