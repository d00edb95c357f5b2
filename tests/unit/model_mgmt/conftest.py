"""The control plane's parts over real replicas in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_mgmt_svc.desired import DesiredModels
from model_mgmt_svc.lifecycle import Lifecycle
from model_mgmt_svc.reconciler import Reconciler
from model_mgmt_svc.replicas import Replicas
from shared.files.client import ModelFiles
from tests.support.model_workers import ModelWorker
from tests.support.providers import Provider


@dataclass
class Plane:
    """Two replicas of text_svc, what drives them, and where their files come from."""

    first: ModelWorker
    second: ModelWorker
    replicas: Replicas
    desired: DesiredModels
    lifecycle: Lifecycle
    source: Provider
    files: ModelFiles

    @property
    def workers(self) -> tuple[ModelWorker, ModelWorker]:
        return self.first, self.second

    def reconciler(
        self,
        interval: float = 60,
        *,
        max_failures: int = 3,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> Reconciler:
        """One of these parts; its loop does not run yet."""
        return Reconciler(
            self.replicas,
            self.desired,
            self.lifecycle,
            interval=interval,
            max_failures=max_failures,
            clock=clock,
        )


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with (
        ModelWorker().running() as first,
        ModelWorker().running() as second,
        Replicas({"text": f"{first.address}, {second.address}"}) as replicas,
        DesiredModels(tmp_path / "desired.json") as desired,
        Provider().running() as source,
        ModelFiles(source.address, tmp_path / "cache") as files,
        contextlib.aclosing(Lifecycle(replicas, desired, files.refresh)) as lifecycle,
    ):
        yield Plane(first, second, replicas, desired, lifecycle, source, files)
