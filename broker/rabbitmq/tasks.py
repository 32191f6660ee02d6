"""Tasks that go on for as long as what they look after."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


def keep_going(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task that ends by being cancelled only; any other end is a mistake in here, and is reported."""

    def report(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            context = {"message": f"the {name} is not kept up any more", "exception": task.exception()}
            task.get_loop().call_exception_handler(context)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(report)
    return task


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` and wait until it is over."""
    task.cancel()
    await asyncio.wait([task])
