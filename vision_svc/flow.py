"""Steps of a pipeline that run ahead of their reader, by one item and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

T = TypeVar("T")


class _Slot(Generic[T]):
    """Room for one item between two tasks, and the end of the sequence."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.ended = False
        self.error: Exception | None = None
        self.changed = asyncio.Condition()

    async def put(self, item: T) -> None:
        """Waits for room."""
        async with self.changed:
            await self.changed.wait_for(lambda: not self.items)
            self.items.append(item)
            self.changed.notify_all()

    async def replace(self, item: T, on_drop: Callable[[T], None]) -> None:
        """Takes the place of an item that still waits."""
        async with self.changed:
            for old in self.items:
                on_drop(old)
            self.items[:] = [item]
            self.changed.notify_all()

    async def end(self, error: Exception | None) -> None:
        async with self.changed:
            self.ended, self.error = True, error
            self.changed.notify_all()

    async def take(self) -> list[T]:
        """The item, or nothing at the end.

        Raises:
            Exception: what ended the sequence, after its last item.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.items or self.ended)
            items, self.items = self.items, []
            self.changed.notify_all()
        if not items and self.error:
            raise self.error
        return items


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
    slot: _Slot[T] = _Slot()

    async def fill() -> None:
        error: Exception | None = None
        try:
            async with aclosing(items):
                async for item in items:
                    if on_drop:
                        await slot.replace(item, on_drop)
                    else:
                        await slot.put(item)
        except Exception as caught:  # noqa: BLE001
            error = caught
        await slot.end(error)

    filler = asyncio.create_task(fill())
    try:
        while taken := await slot.take():
            yield taken[0]
    finally:
        filler.cancel()
        await asyncio.wait([filler])
