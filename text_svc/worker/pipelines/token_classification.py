"""Names, places and the like in a text, and where they are."""

from __future__ import annotations

import threading
from typing import Any, Literal

from transformers import AutoModelForTokenClassification, TokenClassificationPipeline

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.base import TextPipeline
from text_svc.worker.infer.options import NoOptions

# Windows overlap by this part of their length: a span at the end of one is inside the next.
OVERLAP = 4


class TokenOptions(NoOptions):
    """How tokens become spans; the strategies are transformers' own."""

    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"


class TokenClassifier(TextPipeline[TokenOptions]):
    """transformers' own pipeline, for its rules of joining tokens.

    Raises:
        InvalidModelError: the tokenizer does not know the positions of its tokens.
    """

    takes = ("text",)
    options = TokenOptions
    auto_class = AutoModelForTokenClassification

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        if not self.processor.is_fast:
            raise InvalidModelError(
                "the tokenizer gives no character offsets, which token classification needs"
            )
        self._pipeline = TokenClassificationPipeline(model=self.model, tokenizer=self.processor)

    def infer(
        self, request: pb.InferRequest, options: TokenOptions, cancelled: threading.Event
    ) -> pb.InferResponse:
        strategy = {"aggregation_strategy": options.aggregation, **self._windows(request, options)}
        found: Any = self._pipeline(request.text, **strategy)
        return pb.InferResponse(
            spans=[
                pb.TextSpan(
                    label=one.get("entity_group") or one["entity"],
                    score=float(one["score"]),
                    text=request.text[one["start"] : one["end"]],
                    start=one["start"],
                    end=one["end"],
                )
                for one in found
            ]
        )

    def _windows(self, request: pb.InferRequest, options: TokenOptions) -> dict[str, Any]:
        """Makes the pipeline read a long text in overlapping windows; it would truncate it.

        Raises:
            InvalidArgumentError: tokens are not joined, and would be there twice in an overlap.
        """
        tokens = len(self.processor(request.text)["input_ids"])
        limit = self.processor.model_max_length
        if tokens <= limit:
            return {}
        if options.aggregation == "none":
            raise InvalidArgumentError(
                f"text has {tokens} tokens; the model's limit is {limit}, and a longer text needs "
                "an aggregation other than none",
                field="text",
                metadata={"limit": str(limit)},
            )
        return {"stride": limit // OVERLAP}
