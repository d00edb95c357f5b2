"""Which faults a run causes, in which order: all of it follows from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

# What a fault is aimed at.
SERVICES = ("text_svc", "vision_svc", "model_mgmt_svc", "envoy", "provider")
MODEL_PARTS = ("model process", "stepper")
# When a fault comes: at any time, or while a visiting model, or one of those that stay, is at it.
MOMENTS = (
    *("arriving", "fetching", "converting", "loading", "loading for calls"),
    *("generating", "unloading", "evicting"),
)
LIES = ("bytes", "hash", "size")
CLOCK_STEPS = (3600, -3600, 30 * 86_400)
"""Seconds by which the clock jumps."""
_WORDS = {"arriving": "before a load", "fetching": "at 40 % of a fetch"}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: what is done, a key of `faults.KINDS`.
        target: to which process; empty where the kind says it.
        moment: one of `MOMENTS`, or empty for any time.
        seconds: how long it lasts; 0 where it has no length.
        value: what else the kind needs, such as the lie.
        together: it comes at once after the fault before it, which has not been recovered from.
    """

    kind: str
    target: str = ""
    moment: str = ""
    seconds: float = 0.0
    value: str = ""
    together: bool = False

    @property
    def name(self) -> str:
        """As in the table of the report."""
        when = _WORDS.get(self.moment, f"while {self.moment}" if self.moment else "")
        words = (self.kind, self.target, self.value and f"({self.value})", when)
        return " ".join(filter(None, words))

    def fields(self) -> dict[str, Any]:
        """For the log."""
        return {"name": self.name, **asdict(self)}


def all_faults() -> list[Fault]:
    """Each fault once; those that last a while have no length yet."""
    anytime = [
        Fault(kind, target)
        for target in (*SERVICES, *MODEL_PARTS)
        for kind in ("kill", "stop and go on", "stop and kill")
    ]
    at_moments = [
        *(Fault("kill", t, m) for m, targets in _LOADING.items() for t in targets),
        *(Fault("kill", t, "generating") for t in ("model process", "stepper", "text_svc")),
        *(Fault("kill", t, "generating") for t in ("envoy", "model_mgmt_svc")),
        *(Fault("kill", t, "unloading") for t in ("model process", "text_svc", "model_mgmt_svc")),
        Fault("stop and go on", "model_mgmt_svc", "fetching"),
        Fault("stop and go on", "model process", "loading"),
        Fault("stop and kill", "conversion", "converting"),
        Fault("stop and go on", "conversion", "converting"),
    ]
    others = [
        *(Fault("provider slow", "", m, value="1 KB/s") for m in ("arriving", "fetching")),
        *(Fault("provider silent", "", m) for m in ("arriving", "fetching")),
        *(Fault("provider lies", "", "arriving", value=lie) for lie in LIES),
        Fault("provider lies", "", "fetching", value="bytes"),
        Fault("provider restarts with other files", moment="fetching"),
        *(Fault("disk of the caches full", "", m) for m in ("arriving", "fetching")),
        Fault("disk of the record full"),
        *(Fault("memory full", target) for target in ("model process", "text_svc", "vision_svc")),
        Fault("memory full", "model_mgmt_svc"),
        Fault("record of desired models damaged"),
        *(Fault("clock jumps", value=f"{step:+d} s") for step in CLOCK_STEPS),
    ]
    return [*anytime, *at_moments, *others]


# Whose death matters at a moment of a load; `model process` is the visiting model's own.
_LOADING = {
    "fetching": ("text_svc", "model_mgmt_svc", "provider", "envoy"),
    "converting": ("conversion", "text_svc", "model_mgmt_svc"),
    "loading": ("model process", "text_svc", "model_mgmt_svc", "envoy"),
    "loading for calls": ("model process", "text_svc", "model_mgmt_svc"),
    "evicting": ("model process", "text_svc", "model_mgmt_svc"),
}

# One fault of each family, for a run of a few minutes.
SHORT = (
    Fault("kill", "model process"),
    Fault("kill", "stepper", "generating"),
    Fault("stop and go on", "text_svc"),
    Fault("kill", "model_mgmt_svc", "fetching"),
    Fault("kill", "conversion", "converting"),
    Fault("provider lies", "", "arriving", value="bytes"),
    Fault("kill", "envoy"),
    Fault("record of desired models damaged"),
    Fault("kill", "text_svc", "loading for calls"),
    Fault("kill", "model_mgmt_svc", "evicting"),
    Fault("disk of the caches full", "", "arriving"),
    Fault("kill", "vision_svc"),
    Fault("provider restarts with other files", moment="fetching"),
    Fault("memory full", "model process"),
    Fault("clock jumps", value="+3600 s"),
    Fault("kill", "model_mgmt_svc", "unloading"),
)


def schedule(seed: int, faults: tuple[Fault, ...] = ()) -> Iterator[Fault]:
    """Faults without end: every one of them once in an order of the seed, and then again.

    Args:
        seed: the same seed gives the same faults.
        faults: which; all by default.
    """
    chance = random.Random(seed)
    each = faults or tuple(all_faults())
    while True:
        for fault in chance.sample(each, k=len(each)):
            yield _drawn(fault, chance)


def _drawn(fault: Fault, chance: random.Random) -> Fault:
    """With its length, and whether it comes at once after the one before."""
    seconds = round(chance.uniform(1.0, 4.0), 1)
    together = chance.random() < _TOGETHER and not fault.moment and fault.kind == "kill"
    fields = asdict(fault) | {"seconds": 0.0 if fault.kind == "kill" else seconds}
    return Fault(**fields | {"together": together})


# How many of the plain kills come at once after another fault.
_TOGETHER = 0.3
