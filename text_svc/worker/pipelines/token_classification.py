"""Names, places and the like in a text, and where they are."""

from __future__ import annotations

import threading
from typing import Any, Literal

from transformers import AutoModelForTokenClassification, TokenClassificationPipeline

from ml import transformers_pb2 as pb
from shared.errors import InternalError, InvalidArgumentError, InvalidModelError
from text_svc.processes.specs import WorkerSpec
from text_svc.worker.infer.base import TextPipeline
from text_svc.worker.infer.labels import label_names
from text_svc.worker.infer.options import NoOptions

# Windows overlap by this part of their length: a span at the end of one is inside the next.
OVERLAP = 4


class TokenOptions(NoOptions):
    """How tokens become spans; the strategies are transformers' own."""

    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"


class TokenClassifier(TextPipeline[TokenOptions]):
    """transformers' own pipeline, for its rules of joining tokens.

    Raises:
        InvalidModelError: the tokenizer does not know the positions of its tokens, or the model's
            config does not name its labels.
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
        label_names(self.model.config)
        if self.processor.pad_token_id is None:
            # The windows of a long text are padded; the mask hides that, whatever the token is.
            self.processor.pad_token = self.processor.convert_ids_to_tokens(0)
        self.model.register_forward_hook(_refuse_non_finite)
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


def _refuse_non_finite(_: Any, __: Any, output: Any) -> None:
    if not output.logits.isfinite().all():
        raise InternalError("the model's scores of text are not finite numbers")
