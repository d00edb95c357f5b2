"""Names, places and the like in a text, with where they stand."""

from __future__ import annotations

import threading
from typing import Any, Literal

from transformers import AutoModelForTokenClassification, TokenClassificationPipeline

from ml import transformers_pb2 as pb
from shared.errors import InvalidArgumentError, InvalidModelError
from text_svc.processes.launch import WorkerSpec
from text_svc.torch_models.pretrained import Pretrained
from text_svc.worker.infer.base import Family, NoOptions
from text_svc.worker.infer.service import load_family
from text_svc.worker.loaded import LoadedPipeline

# Windows share this part of them: what lies at the end of one lies within the next.
OVERLAP = 4


class TokenOptions(NoOptions):
    """How tokens become spans; the strategies are transformers' own."""

    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"


class TokenClassifier(Family[TokenOptions]):
    """transformers' pipeline, for its rules of joining tokens."""

    takes = ("text",)
    options = TokenOptions

    def __init__(self, launch: WorkerSpec) -> None:
        super().__init__(launch)
        source = Pretrained(launch.folder, launch.options)
        self.model = source.model(AutoModelForTokenClassification)
        tokenizer = source.tokenizer(self.model.config)
        if not tokenizer.is_fast:
            raise InvalidModelError("the tokenizer does not tell where its tokens stand")
        self._pipeline = TokenClassificationPipeline(model=self.model, tokenizer=tokenizer)

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
        """What has the pipeline read a long text in windows that overlap; it would cut it off.

        Raises:
            InvalidArgumentError: spans that are not joined cannot be told apart in an overlap.
        """
        tokenizer: Any = self._pipeline.tokenizer
        tokens, limit = len(tokenizer(request.text)["input_ids"]), tokenizer.model_max_length
        if tokens <= limit:
            return {}
        if options.aggregation == "none":
            raise InvalidArgumentError(
                f"text has {tokens} tokens and the model reads {limit}; a longer one needs another "
                "aggregation than none",
                field="text",
                metadata={"limit": str(limit)},
            )
        return {"stride": limit // OVERLAP}


def load(launch: WorkerSpec) -> LoadedPipeline:
    """See `pipelines.load`."""
    return load_family(launch, TokenClassifier)
