"""Answers to questions about a page: LayoutLM finds them among its words, Donut reads the page."""

from __future__ import annotations

import re
import threading
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForDocumentQuestionAnswering,
    VisionEncoderDecoderModel,
)

# transformers' public name for it requires torchvision, which processors on Pillow do without.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ml import transformers_pb2 as pb
from shared.errors import (
    InputTooLargeError,
    InvalidArgumentError,
    InvalidModelError,
    MissingFieldError,
    OutOfRangeError,
)
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.torch_models.tokenizer import load_tokenizer
from text_svc.worker.cancel import raise_if_cancelled
from text_svc.worker.infer.answers import (
    AnswerOptions,
    best_spans,
    in_windows,
    required_question,
)
from text_svc.worker.infer.base import GenerateOptions, InferPipeline
from text_svc.worker.media.decode import decode_image

# Words of a page.
MAX_WORDS = 20_000
# Tokens that two windows of a long page share, at most: transformers' default.
SHARED_TOKENS = 256
# Models count places on a page from 0 to this.
PLACES = 1000
# Numbers of a message such as 0.7 are up to this much too small, times PLACES.
FLOAT_ERROR = 1e-4

_DONUT = "donut-swin"
_DONUT_PROMPT = "<s_docvqa><s_question>{}</s_question><s_answer>"


class DocumentReader(InferPipeline[Any]):
    """As transformers' pipeline, with the words and boxes of the caller's own OCR.

    Raises:
        InvalidModelError: a model of an encoder and a decoder is not Donut.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._reads = isinstance(self.model, VisionEncoderDecoderModel)
        self.takes = ("image",) if self._reads else ("document",)
        self.options = GenerateOptions if self._reads else AnswerOptions
        # LayoutLM, the first one, knows the places of words and not what they look like.
        self._looks = self._reads or bool(getattr(self.model.config, "visual_embed", False))

    def read_model(self, source: Pretrained) -> Any:
        config = source.read(AutoConfig)
        if config.model_type != "vision-encoder-decoder":
            return source.model(AutoModelForDocumentQuestionAnswering)
        if config.encoder.model_type != _DONUT:
            raise InvalidModelError(
                "of the models with an image encoder and a text decoder only Donut answers "
                f"questions about documents; the encoder of this one is {config.encoder.model_type}"
            )
        return source.model(VisionEncoderDecoderModel)

    def read_processor(self, source: Pretrained) -> Any:
        """The tokenizer; `_images` reads pictures."""
        donut = isinstance(self.model, VisionEncoderDecoderModel)
        looks = donut or getattr(self.model.config, "visual_embed", False)
        # A model of LayoutLM asks for an OCR, unless it is told not to.
        options = {} if donut else {"apply_ocr": False}
        self._images: Any = source.read(AutoImageProcessor, **options) if looks else None
        if donut:
            return load_tokenizer(source.folder)
        tokenizer = source.tokenizer(self.model)
        if not tokenizer.is_fast:
            raise InvalidModelError(
                "the tokenizer does not say which word a token is of, which documents need"
            )
        return tokenizer

    def infer(
        self, request: pb.InferRequest, options: Any, cancelled: threading.Event
    ) -> pb.InferResponse:
        question = required_question(request.prompt)
        if self._reads:
            return self._read(question, request, options, cancelled)
        return self._find(question, request, options, cancelled)

    def _read(
        self,
        question: str,
        request: pb.InferRequest,
        options: GenerateOptions,
        cancelled: threading.Event,
    ) -> pb.InferResponse:
        inputs = self._images(self.image(request), return_tensors="pt")
        prompt = self.processor(
            _DONUT_PROMPT.format(question), add_special_tokens=False, return_tensors="pt"
        )["input_ids"]
        inputs = {"inputs": inputs["pixel_values"], "decoder_input_ids": prompt}
        ids = self.generate(inputs, options, cancelled, prompt_tokens=prompt.shape[1])
        text = self.processor.decode(ids)
        found = re.search("<s_answer>(.*)</s_answer>", text, re.DOTALL)
        answer = found[1].strip() if found else ""
        return pb.InferResponse(answers=[pb.Answer(text=answer)])

    def _find(
        self,
        question: str,
        request: pb.InferRequest,
        options: AnswerOptions,
        cancelled: threading.Event,
    ) -> pb.InferResponse:
        words, boxes = _words(request.document)
        encoded = self._windows(question, words, options)
        more = {}
        if self._looks:
            page = decode_image(
                request.document.image.data, self.spec.max_image_pixels, "document.image"
            )
            more["pixel_values"] = self._images(page, return_tensors="pt")["pixel_values"]
        found: dict[tuple[int, int], float] = {}
        nowhere = 1.0
        for window, ids in enumerate(encoded["input_ids"]):
            raise_if_cancelled(cancelled)
            sequences = encoded.sequence_ids(window)
            inputs = {
                name: torch.tensor([encoded[name][window]])
                for name in self.processor.model_input_names
                if name in encoded
            }
            inputs["bbox"] = torch.tensor([self._places(encoded, window, boxes)])
            with torch.inference_mode():
                output = self.model(**self.to_model(inputs | more))
            cls = self.processor.cls_token_id
            spans, null = best_spans(
                output.start_logits[0, : len(ids)],  # LayoutLMv3 scores parts of the image, too
                output.end_logits[0, : len(ids)],
                torch.tensor([sequence == 1 for sequence in sequences]),
                ids.index(cls) if cls in ids else None,
                options.top_k,
                options.max_answer_len,
            )
            nowhere = min(nowhere, null)
            numbers = encoded.word_ids(window)
            for span in spans:
                place = numbers[span.first], numbers[span.last] + 1
                found[place] = max(span.score, found.get(place, 0.0))
        if options.handle_impossible_answer:
            found[0, 0] = nowhere
        best = sorted(found.items(), key=lambda each: -each[1])[: options.top_k]
        return pb.InferResponse(
            answers=[
                pb.Answer(text=" ".join(words[start:end]), score=score, start=start, end=end)
                for (start, end), score in best
            ]
        )

    def _windows(self, question: str, words: list[str], options: AnswerOptions) -> Any:
        own: int = self.processor.model_max_length
        limit = min(options.max_seq_len or own, own)
        shared = options.doc_stride or min(limit // 2, SHARED_TOKENS)
        parts, split = question.split(), {"is_split_into_words": True}
        asked = len(self.processor(parts, add_special_tokens=False, **split)["input_ids"])
        return in_windows(self.processor, parts, words, asked, limit, shared, **split)

    def _places(self, encoded: Any, window: int, boxes: list[list[int]]) -> list[list[int]]:
        """The boxes of tokens: of their words, and of the question as the models were trained."""
        tokens = zip(
            encoded["input_ids"][window],
            encoded.sequence_ids(window),
            encoded.word_ids(window),
            strict=True,
        )
        end = self.processor.sep_token_id
        end_place = 0 if self._looks else PLACES
        return [
            boxes[word] if sequence == 1 else [end_place if token == end else 0] * 4
            for token, sequence, word in tokens
        ]


def _words(document: pb.Document) -> tuple[list[str], list[list[int]]]:
    """The words of a page, and their boxes from 0 to PLACES.

    Raises:
        MissingFieldError: there are none.
        InputTooLargeError: there are more than MAX_WORDS.
        InvalidArgumentError: a box does not have four numbers, or a word has no text.
        OutOfRangeError: a number is not from 0 to 1, or a box has its corners in another order.
    """
    if not document.words:
        raise MissingFieldError(
            "document.words is empty; the model needs the words of an OCR", field="document.words"
        )
    if len(document.words) > MAX_WORDS:
        raise InputTooLargeError(
            f"document has {len(document.words)} words; the limit is {MAX_WORDS}",
            metadata={"limit": str(MAX_WORDS)},
        )
    boxes = []
    for index, word in enumerate(document.words):
        field = f"document.words[{index}]"
        if not word.text.strip():
            raise MissingFieldError(f"{field}.text is empty", field=f"{field}.text")
        if len(word.box) != 4:
            raise InvalidArgumentError(
                f"{field}.box has {len(word.box)} numbers; it must have 4", field=f"{field}.box"
            )
        left, top, right, bottom = word.box
        if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):  # nor is NaN
            raise OutOfRangeError(
                f"{field}.box must be left, top, right and bottom, from 0 to 1",
                field=f"{field}.box",
            )
        boxes.append([int(PLACES * number + FLOAT_ERROR) for number in word.box])
    return [word.text for word in document.words], boxes
