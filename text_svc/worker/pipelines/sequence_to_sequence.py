"""Encoder-decoder models: translation, summaries, and other texts made of a text."""

from __future__ import annotations

import copy
import threading
from typing import Any

from pydantic import Field
from transformers import AutoModelForSeq2SeqLM

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.link.server import Handlers
from text_svc.processes.specs import WorkerSpec
from text_svc.torch_models.pretrained import end_tokens_of
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.infer.base import GenerateOptions, TextPipeline, decoder_limit
from text_svc.worker.infer.streaming import text_generator
from text_svc.worker.tokenizers.slow import SlowTokenizer


class Seq2SeqOptions(GenerateOptions):
    """Languages have the names of the model's tokenizer; most models take none."""

    source_language: str = Field("", max_length=40)
    target_language: str = Field("", max_length=40)


class Seq2Seq(TextPipeline[Seq2SeqOptions]):
    """A text to a text. T5 models want the task before it: "translate English to German: ".

    GenerateText shares the tokenizer, whose language therefore stays the model's own.

    Raises:
        InvalidModelError: the model has no encoder: its answer would repeat the text.
    """

    takes = ("text",)
    options = Seq2SeqOptions
    auto_class = AutoModelForSeq2SeqLM

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        if not self.model.config.is_encoder_decoder:
            raise InvalidModelError(
                f"{spec.pipeline} needs a model of encoder and decoder, such as T5; "
                f"{self.model.config.model_type} models are none"
            )
        self._language_tokenizer: Any = None

    def handlers(self) -> Handlers:
        generator = text_generator(
            self.model,
            SlowTokenizer(self.processor),
            end_tokens_of(self.model, self.processor),
            self.spec,
            context=self.processor.model_max_length,
            new_tokens=decoder_limit(self.model) - 1,
            greedy=True,
        )
        generation = GenerationHandlers(generator, self.spec)
        return {**super().handlers(), "GenerateText": generation.generate_text}

    def infer(
        self, request: pb.InferRequest, options: Seq2SeqOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        target = self._target(options.target_language)
        tokenizer = self._tokenizer(options.source_language)
        inputs = tokenizer(request.text, return_tensors="pt", return_token_type_ids=False)
        tokens, limit = inputs["input_ids"].shape[1], self.processor.model_max_length
        if tokens > limit:  # an answer to the beginning alone would look like one to all of it
            raise InvalidArgumentError(
                f"text has {tokens} tokens; the model's limit is {limit}",
                field="text",
                metadata={"limit": str(limit)},
            )
        ids = self.generate(inputs, options, cancelled, **target)
        text = self.processor.decode(ids, skip_special_tokens=True)
        return pb.InferResponse(text=text.strip())

    def _tokenizer(self, language: str) -> Any:
        """The tokenizer of texts in a language; "" is the model's own."""
        if not language:
            return self.processor
        self._language_token(language, "source_language")
        if self._language_tokenizer is None:
            self._language_tokenizer = copy.deepcopy(self.processor)
        self._language_tokenizer.src_lang = language
        return self._language_tokenizer

    def _target(self, language: str) -> dict[str, Any]:
        """Arguments of `generate` for the language of the answer; "" is the model's own."""
        if not language:
            return {}
        return {"forced_bos_token_id": self._language_token(language, "target_language")}

    def _language_token(self, language: str, field: str) -> int:
        """The token of a language: M2M100 has a table of them, NLLB and mBART the name itself.

        Raises:
            InvalidArgumentError: the model does not have this language.
        """
        table = getattr(self.processor, "lang_code_to_id", None) or {}
        token = table.get(language, self.processor.convert_tokens_to_ids(language))
        if not hasattr(self.processor, "src_lang") or token in (None, self.processor.unk_token_id):
            raise InvalidArgumentError(
                f"the model has no language {language!r}", field=f"options[{field}]"
            )
        return int(token)
