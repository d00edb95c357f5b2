"""A model as its callers see it, over all replicas that hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model_mgmt_svc.replicas import HeldModel


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, over all replicas that hold it: memory is their sum, in bytes.

    `loaded_at` is the Unix time, in seconds, since when the first of them has it. `engine` and
    `note` are the first one's words: what runs it, and a sentence for whoever loads it.
    """

    model_id: str
    pipeline_type: str
    ram_bytes: int
    vram_bytes: int
    loaded_at: int
    replicas: int
    engine: str = ""
    note: str = ""

    @classmethod
    def over(cls, models: Sequence[HeldModel]) -> LoadedModel:
        """One model on some replicas as one."""
        return cls(
            model_id=models[0].model_id,
            pipeline_type=models[0].pipeline_type,
            ram_bytes=sum(model.ram_bytes for model in models),
            vram_bytes=sum(model.vram_bytes for model in models),
            loaded_at=min(model.loaded_at for model in models),
            replicas=len(models),
            engine=models[0].engine,
            note=models[0].note,
        )
