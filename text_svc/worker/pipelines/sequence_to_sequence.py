"""Encoder-decoder models: translation, summaries, and whatever else a text becomes."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from typing import Any

from pydantic import Field
from transformers import AutoModelForSeq2SeqLM

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained, end_tokens_of, loading_errors
from text_svc.worker.engines.base import Limits
from text_svc.worker.engines.metrics import EngineMetrics
from text_svc.worker.engines.sampling import SamplingDefaults
from text_svc.worker.engines.transformers import (
    MAX_GENERATE,
    TransformersEngine,
)
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.infer.base import Family, GenerateOptions, answer_room
from text_svc.worker.loaded import LoadedPipeline
from text_svc.worker.pipelines.seq2seq_service import Seq2SeqHandlers
from text_svc.worker.tokenizers.slow import WholeTokenizer


class Seq2SeqOptions(GenerateOptions):
    """Languages are named as the model's tokenizer names them; most models take none."""

    source_language: str = Field("", max_length=40)
    target_language: str = Field("", max_length=40)


class Seq2Seq(Family[Seq2SeqOptions]):
    """A text to a text. T5 models want their task before it: "translate English to German: "."""

    takes = ("text",)
    options = Seq2SeqOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForSeq2SeqLM)
        # Shared with GenerateText, so its language stays the model's own.
        self.tokenizer = source.tokenizer(self.model.config)
        self._of_language: Any = None

    def infer(
        self, request: pb.InferRequest, options: Seq2SeqOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        target = self._target(options.target_language)
        tokenizer = self._tokenizer(options.source_language)
        inputs = tokenizer(request.text, return_tensors="pt", return_token_type_ids=False)
        tokens, limit = inputs["input_ids"].shape[1], self.tokenizer.model_max_length
        if tokens > limit:  # an answer to the beginning alone would look like one to all of it
            raise InvalidArgumentError(
                f"text has {tokens} tokens, the model reads {limit}",
                field="text",
                metadata={"limit": str(limit)},
            )
        ids = self.generate(inputs, options, cancelled, **target)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return pb.InferResponse(text=text.strip())

    def _tokenizer(self, language: str) -> Any:
        """The tokenizer of texts in a language; "" is the model's own."""
        if not language:
            return self.tokenizer
        self._language_token(language, "source_language")
        if self._of_language is None:
            self._of_language = copy.deepcopy(self.tokenizer)
        self._of_language.src_lang = language
        return self._of_language

    def _target(self, language: str) -> dict[str, Any]:
        """What tells `generate` the language of the answer; nothing for "", the model's own."""
        if not language:
            return {}
        return {"forced_bos_token_id": self._language_token(language, "target_language")}

    def _language_token(self, language: str, field: str) -> int:
        """The token of a language: M2M100 has a method for it, NLLB and mBART the name itself."""
        known = getattr(self.tokenizer, "lang_code_to_id", None) or {}
        token = known.get(language, self.tokenizer.convert_tokens_to_ids(language))
        if not hasattr(self.tokenizer, "src_lang") or token in (None, self.tokenizer.unk_token_id):
            raise InvalidArgumentError(
                f"the model has no language {language!r}", field=f"options[{field}]"
            )
        return int(token)


def _generator(family: Seq2Seq, launch: WorkerSpec) -> TextGenerator:
    """Greedy where neither the caller nor the model asks for chance: a translation wants none."""
    metrics = EngineMetrics(launch.model_id)
    limits = Limits(
        family.tokenizer.model_max_length,
        min(MAX_GENERATE, launch.max_running),
        launch.max_waiting,
        new_tokens=answer_room(family.model),
    )
    end_tokens = end_tokens_of(family.model, family.tokenizer)
    engine = TransformersEngine(family.model, limits, end_tokens, metrics)
    defaults = SamplingDefaults.read(launch.folder)
    defaults = replace(defaults, temperature=defaults.temperature or 0.0)
    tokenizer = WholeTokenizer(family.tokenizer)
    return TextGenerator(engine, tokenizer, defaults, metrics, launch.max_prompt_bytes)


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    with loading_errors(launch):
        family = Seq2Seq(launch)
    handlers = Seq2SeqHandlers(family, _generator(family, launch), launch)
    return LoadedPipeline(handlers.table(), family.report())
