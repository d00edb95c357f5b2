"""The memory that models may use, and what each of them has reserved of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from shared.errors import OutOfMemoryError
from shared.model_host import HOST, MemoryPool, format_needs
from shared.process import memory_limit_bytes
from text_svc.models.cuda import cuda_memory
from text_svc.models.model import ManagedModel
from text_svc.settings import TextSettings

MIB = 1 << 20
# Share of the memory limit that models may use when no budget is set; of a CUDA device's memory.
BUDGET_SHARE = 0.8
CUDA_SHARE = 0.9
CUDA_SETTING = "TEXT_CUDA_MEMORY_BUDGET_MB"
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
    """The memory that all models share: of the host, and of each CUDA device.

    Args:
        settings: the budgets; one of 0 is a share of what there is.
        models: gives all models that hold shares.
        devices: bytes of each accelerator, by device.
    """

    def __init__(
        self,
        settings: TextSettings,
        models: Callable[[], Iterable[ManagedModel]],
        devices: Mapping[str, int] | None = None,
    ) -> None:
        host = settings.memory_budget_mb * MIB or int(memory_limit_bytes() * BUDGET_SHARE)
        devices = cuda_memory() if devices is None else devices
        on_device = settings.cuda_memory_budget_mb * MIB
        self._budgets = {
            HOST: host,
            **{name: on_device or int(size * CUDA_SHARE) for name, size in devices.items()},
        }
        self._models = models

    def pools(self) -> list[MemoryPool]:
        """The memory of each device, and how much of it models have reserved."""
        return [self._pool(device) for device in self._budgets]

    def has(self, device: str) -> bool:
        """Whether there is a budget of this device."""
        return device in self._budgets

    def reserve(
        self, model: ManagedModel, needs: Mapping[str, int], purpose: str = "to be loaded"
    ) -> None:
        """Makes `needs`, bytes by device, the model's share, before anything is read into memory.

        Raises:
            OutOfMemoryError: less is free on a device; the message tells both. Its metadata tell
                the control plane all needs, so that it can make room.
        """
        for device, needed in needs.items():
            pool = self._pool(device, model)
            if needed > pool.free_bytes:
                free = max(pool.free_bytes, 0)
                of = "" if device == HOST else f" of {device}"
                setting = "TEXT_MEMORY_BUDGET_MB" if device == HOST else CUDA_SETTING
                raise OutOfMemoryError(
                    f"model {model.model_id} needs about {needed // MIB} MiB{of} {purpose}, but "
                    f"only {free // MIB} MiB of the {pool.budget_bytes // MIB} MiB budget are "
                    f"free; unload another model or raise {setting}",
                    metadata={
                        "device": device,
                        "needed_bytes": str(needed),
                        "free_bytes": str(free),
                        "needs": format_needs(needs),
                    },
                )
        model.reserved = dict(needs)

    def cache_bytes(self, beside: int, limit: int | None = None, device: str = HOST) -> int:
        """Size of a key-value cache whose caller named none.

        Args:
            beside: bytes that its model needs besides.
            limit: largest cache; None is any.
            device: where it is.
        """
        share = max(MIN_CACHE_BYTES, int((self._pool(device).free_bytes - beside) * CACHE_SHARE))
        return share if limit is None else max(MIN_CACHE_BYTES, min(share, limit))

    def _pool(self, device: str, beside: ManagedModel | None = None) -> MemoryPool:
        """A device with what all models have reserved of it, but for the one that reserves."""
        others = (model for model in self._models() if model is not beside)
        reserved = sum(model.reserved.get(device, 0) for model in others)
        return MemoryPool(device, self._budgets[device], reserved)
