"""Steps of a pipeline that run ahead of their reader, by one item and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """What comes after the last item."""

    error: Exception | None


async def ahead(
    items: AsyncGenerator[T], *, on_drop: Callable[[T], None] | None = None
) -> AsyncGenerator[T]:
    """The same items, made in a task of its own while the reader is busy with the one before.

    Args:
        items: closed at the end, however it comes.
        on_drop: if given, an item that still waits when the next one comes is dropped and handed to
            it; otherwise the next one waits.

    Raises:
        Exception: what `items` raised, after the items before it.
    """
    slot: asyncio.Queue[T | _End] = asyncio.Queue(maxsize=1)

    async def fill() -> None:
        error: Exception | None = None
        try:
            async with aclosing(items):
                async for item in items:
                    if on_drop and slot.full():
                        # Only this task puts, so what is taken out here is always an item.
                        on_drop(slot.get_nowait())  # type: ignore[arg-type]
                    await slot.put(item)
        except Exception as caught:  # noqa: BLE001
            error = caught
        await slot.put(_End(error))

    filler = asyncio.create_task(fill())
    try:
        while not isinstance(item := await slot.get(), _End):
            yield item
        if item.error:
            raise item.error
    finally:
        filler.cancel()
        await asyncio.wait([filler])
