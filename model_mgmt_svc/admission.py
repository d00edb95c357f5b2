"""Which new replicas may take calls.

A new replica beside others takes no calls before it has the models that are desired there; its own
side of this is `shared.rpc.admission`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from model_mgmt_svc.desired import DesiredModel
from model_mgmt_svc.replicas import Replica
from shared.errors import ServiceError

log = logging.getLogger(__name__)


async def admit_replicas(
    missing: Mapping[Replica, Sequence[DesiredModel]],
    gave_up: Callable[[DesiredModel], bool],
) -> None:
    """Admits the new replicas that have all models desired of them.

    If no other replica of the service answers, an incomplete one is better than none: it serves
    the models that it has and reports that the others are being loaded. One that somebody has
    drained is left alone.

    Args:
        missing: the replicas that are up, each with the desired models that it lacks.
        gave_up: whether loading a model has failed too often for a replica to wait for it.
    """
    for replica in sorted(missing, key=lambda each: len(missing[each])):
        waits = any(not gave_up(model) for model in missing[replica])
        if replica.admitted or replica.drained or (waits and _has_peers(replica, missing)):
            continue
        try:
            await replica.admit()
        except ServiceError as error:
            log.warning("cannot admit a replica", extra={"error": error.message})


def _has_peers(replica: Replica, replicas: Iterable[Replica]) -> bool:
    """Whether another replica of its service takes calls."""
    return any(
        other.admitted and not other.drained and other.service == replica.service
        for other in replicas
        if other is not replica
    )
