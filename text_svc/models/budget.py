"""The memory that models may use, and what each of them has reserved of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shared.errors import OutOfMemoryError
from shared.process import memory_limit_bytes
from text_svc.models.model import ManagedModel

MIB = 1 << 20
# Share of the memory limit that models may use when no budget is set.
BUDGET_SHARE = 0.8
# Largest share of the free budget for a key-value cache of unspecified size; smallest useful one.
CACHE_SHARE = 0.5
MIN_CACHE_BYTES = 32 * MIB
# What a process may take beside its margin: more than it has reserved, since copies of weights live
# for a while and work takes memory of its own; and for each core the stacks of the threads that the
# libraries make, which the limit counts whole. Measured on two cores with all callers at work,
# reserved and taken in MiB: MiniLM 598 and 533, SmolLM2 2049 and 1515, on torch 2157 and 2676,
# whisper-tiny 656 and 794; conversions of the first two 772 and 785, 2051 and 1942.
LIMIT_SHARE = 1.25
THREAD_BYTES = 32 * MIB


def process_limit(reserved: int, margin_mb: int, threads: int) -> int:
    """Bytes that a process may take which has reserved `reserved`; it ends above that."""
    return int(reserved * LIMIT_SHARE) + margin_mb * MIB + threads * THREAD_BYTES


class MemoryBudget:
    """Memory for all models together, in bytes.

    Args:
        budget_mb: MiB; 0 is `BUDGET_SHARE` of the container's or machine's memory.
        models: gives all models that hold a share.
    """

    def __init__(self, budget_mb: int, models: Callable[[], Iterable[ManagedModel]]) -> None:
        self.total_bytes = budget_mb * MIB or int(memory_limit_bytes() * BUDGET_SHARE)
        self._models = models

    @property
    def free_bytes(self) -> int:
        """What no model has reserved; negative when the models hold more than the budget."""
        return self.total_bytes - sum(model.reserved_bytes for model in self._models())

    def reserve(self, model: ManagedModel, needed: int, purpose: str = "to be loaded") -> None:
        """Makes `needed` the model's share, before anything is read into memory.

        Raises:
            OutOfMemoryError: less is free; the message tells both.
        """
        free = self.free_bytes
        if needed > free:
            raise OutOfMemoryError(
                f"model {model.model_id} needs about {needed // MIB} MiB {purpose}, but only "
                f"{max(free, 0) // MIB} MiB of the {self.total_bytes // MIB} MiB budget are free; "
                "unload another model or raise TEXT_MEMORY_BUDGET_MB",
                metadata={"needed_bytes": str(needed), "free_bytes": str(max(free, 0))},
            )
        model.reserved_bytes = needed

    def cache_bytes(self, beside: int, limit: int) -> int:
        """Size of a key-value cache whose caller named none.

        Args:
            beside: bytes that its model needs besides.
            limit: largest cache.
        """
        share = int((self.free_bytes - beside) * CACHE_SHARE)
        return max(MIN_CACHE_BYTES, min(share, limit))
