"""Infer and GenerateText of one encoder-decoder model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ml import transformers_pb2 as pb
from text_svc.launch import Launch
from text_svc.worker.generation import TextGenerator
from text_svc.worker.generation_service import GenerationServicer
from text_svc.worker.infer_service import InferServicer
from text_svc.worker.inference import Family


class Seq2SeqServicer(InferServicer):
    """Infer, and GenerateText for an answer that streams."""

    def __init__(self, family: Family[Any], generator: TextGenerator, launch: Launch) -> None:
        super().__init__(family, launch)
        self._generation = GenerationServicer(generator, launch)

    def GenerateText(self, request: pb.TextRequest, context: Any) -> AsyncIterator[pb.TextResponse]:
        return self._generation.GenerateText(request, context)
