"""Infer and GenerateText of one encoder-decoder model."""

from __future__ import annotations

from typing import Any

from text_svc.link.server import Handlers
from text_svc.processes.launch import WorkerSpec
from text_svc.worker.generation.generator import TextGenerator
from text_svc.worker.generation.service import GenerationHandlers
from text_svc.worker.infer.base import Family
from text_svc.worker.infer.service import InferHandlers


class Seq2SeqHandlers(InferHandlers):
    """Infer, and GenerateText for an answer that streams."""

    def __init__(self, family: Family[Any], generator: TextGenerator, launch: WorkerSpec) -> None:
        super().__init__(family, launch)
        self._generation = GenerationHandlers(generator, launch)

    def table(self) -> Handlers:
        return {**super().table(), "GenerateText": self._generation.generate_text}
