"""The answer to a question, out of a text: models that name its first and its last token."""

from __future__ import annotations

import threading
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.cancel import raise_if_cancelled
from text_svc.worker.infer.answers import (
    AnswerOptions,
    best_spans,
    in_windows,
    required_question,
)
from text_svc.worker.infer.base import TextPipeline

# Tokens that are read at once, of question and text, and those that two windows share: the defaults
# of transformers' pipeline.
WINDOW_TOKENS = 384
SHARED_TOKENS = 128

# Where an answer is in the text.
_Place = tuple[int, int]


class TextAnswerOptions(AnswerOptions):
    """See `AnswerOptions`.

    Attributes:
        align_to_words: an answer has whole words; off for languages without spaces.
    """

    align_to_words: bool = True


class QuestionAnswerer(TextPipeline[TextAnswerOptions]):
    """As transformers' pipeline did, up to version 4: long texts are read in windows.

    It differs where a text has the same words in two places: these are two answers, each with its
    own score. One place in two windows has the better one of its scores.

    Raises:
        InvalidModelError: the tokenizer does not know the positions of its tokens.
    """

    takes = ("text",)
    options = TextAnswerOptions
    auto_class = AutoModelForQuestionAnswering

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        if not self.processor.is_fast:
            raise InvalidModelError(
                "the tokenizer gives no character offsets, which question answering needs"
            )
        self.model.config.get_text_config().use_cache = False  # nothing is generated

    def infer(
        self, request: pb.InferRequest, options: TextAnswerOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        question, text = required_question(request.prompt), request.text
        encoded = self._windows(question, text, options)
        found: dict[_Place, float] = {}
        nowhere = 1.0
        for window in range(len(encoded["input_ids"])):
            raise_if_cancelled(cancelled)
            places, null = self._in_window(encoded, window, options)
            nowhere = min(nowhere, null)
            for place, score in places.items():
                if not text[slice(*place)].strip():
                    continue  # the token of a space, which answers nothing
                found[place] = max(score, found.get(place, 0.0))
        if options.handle_impossible_answer:
            found[0, 0] = nowhere
        if not found:
            raise InvalidArgumentError("text has no words that could be an answer", field="text")
        best = sorted(found.items(), key=lambda each: -each[1])[: options.top_k]
        return pb.InferResponse(
            answers=[
                pb.Answer(text=text[start:end], score=score, start=start, end=end)
                for (start, end), score in best
            ]
        )

    def _windows(self, question: str, text: str, options: TextAnswerOptions) -> Any:
        own: int = self.processor.model_max_length
        limit = min(options.max_seq_len or WINDOW_TOKENS, own)
        asked = len(self.processor(question, add_special_tokens=False)["input_ids"])
        shared = options.doc_stride or min(limit // 2, SHARED_TOKENS)
        offsets = {"return_offsets_mapping": True}
        return in_windows(self.processor, question, text, asked, limit, shared, **offsets)

    def _in_window(
        self, encoded: Any, window: int, options: TextAnswerOptions
    ) -> tuple[dict[_Place, float], float]:
        """Scores of the answers by their places, and that of "it is not here"."""
        inputs = {
            name: torch.tensor([encoded[name][window]])
            for name in self.processor.model_input_names
            if name in encoded
        }
        with torch.inference_mode():
            output = self.model(**self.to_model(inputs))
        ids = encoded["input_ids"][window]
        which = 1 if self.processor.padding_side == "right" else 0
        is_text = torch.tensor([sequence == which for sequence in encoded.sequence_ids(window)])
        cls = self.processor.cls_token_id
        spans, nowhere = best_spans(
            output.start_logits[0],
            output.end_logits[0],
            is_text,
            ids.index(cls) if cls in ids else None,
            # Some of them are the same words.
            options.top_k * 2 + 10 if options.align_to_words else options.top_k,
            options.max_answer_len,
        )
        places: dict[_Place, float] = {}
        for span in spans:
            first, last = (
                self._characters(encoded, window, token, which, options.align_to_words)
                for token in (span.first, span.last)
            )
            place = first[0], last[1]
            places[place] = min(places.get(place, 0.0) + span.score, 1.0)
        return places, nowhere

    def _characters(
        self, encoded: Any, window: int, token: int, which: int, whole_words: bool
    ) -> _Place:
        """Where a token is in the text, or the word that it belongs to."""
        word = encoded.token_to_word(window, token) if whole_words else None
        if word is not None:
            characters = encoded.word_to_chars(window, word, sequence_index=which)
            return characters.start, characters.end
        start, end = encoded["offset_mapping"][window][token]
        return start, end
