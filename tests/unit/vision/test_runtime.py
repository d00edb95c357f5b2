"""What streams and pictures share."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.errors import QueueFullError
from vision_svc.runtime import VisionRuntime, name_thread
from vision_svc.settings import VisionSettings


async def test_places_for_streams_are_limited(tmp_path: Path) -> None:
    settings = VisionSettings(assets_dir=tmp_path, workers=1, max_streams=2)
    runtime = VisionRuntime(settings, lambda: None)
    try:
        opened = [runtime.streams.take("a", lambda _: False) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 streams are open"):
            runtime.streams.take("a", lambda _: False)
        runtime.streams.free(opened[0])
        runtime.streams.take("a", lambda _: False)
    finally:
        await asyncio.to_thread(runtime.close)


def test_the_name_of_a_thread_is_cut_to_what_fits() -> None:
    with ThreadPoolExecutor(
        1, initializer=name_thread, initargs=("a-name-of-many-letters",)
    ) as pool:
        path = pool.submit(
            lambda: Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        ).result()
        assert path.read_text().strip() == "a-name-of-many-"
