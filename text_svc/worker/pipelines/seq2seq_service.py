"""Infer and GenerateText of one encoder-decoder model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from ml import transformers_pb2 as pb
from text_svc.processes.launch import Launch
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.generation.service import GenerationServicer
from text_svc.worker.infer.base import Family
from text_svc.worker.infer.service import InferServicer


class Seq2SeqServicer(InferServicer):
    """Infer, and GenerateText for an answer that streams."""

    def __init__(self, family: Family[Any], generator: TextGenerator, launch: Launch) -> None:
        super().__init__(family, launch)
        self._generation = GenerationServicer(generator, launch)

    def GenerateText(self, request: pb.TextRequest, context: Any) -> AsyncIterator[pb.TextResponse]:
        return self._generation.GenerateText(request, context)
