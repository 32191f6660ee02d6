"""A network that can fail: a TCP proxy between a client and its server."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK_BYTES = 1 << 16


class Proxy:
    """Forwards connections to ``port`` of 127.0.0.1 until it is cut; `heal` mends it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False
        self._ending = False
        self._forwarding: list[list[asyncio.Task[None]]] = []
        self._answering = asyncio.Event()
        self._answering.set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._ending = True
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections, and new ones as soon as they are made."""
        self._cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def heal(self) -> None:
        """Forward new connections again, and answers."""
        self._cut = False
        self._answering.set()

    def hold_answers(self) -> None:
        """Keep back what the server says, until healed; it still hears all that the client says."""
        self._answering.clear()

    def freeze(self) -> None:
        """Forward nothing more on the connections there are, and tell nobody; new ones are forwarded."""
        for forwarding in self._forwarding:
            for pump in forwarding:
                pump.cancel()
        self._forwarding.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            if not self._cut:
                await self._forward(reader, writer)
        except asyncio.CancelledError:
            if not self._ending:
                raise
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(far_writer)
            pumps = [
                asyncio.create_task(_pump(reader, far_writer)),
                asyncio.create_task(_pump(far_reader, writer, self._answering)),
            ]
            self._forwarding.append(pumps)
            try:
                await asyncio.wait(pumps)
                if pumps not in self._forwarding:  # frozen: both ends stay open
                    await asyncio.Event().wait()
            finally:
                for pump in pumps:
                    pump.cancel()
                self._writers.discard(far_writer)
                far_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event | None = None) -> None:
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            if gate is not None:
                await gate.wait()
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass
    except asyncio.CancelledError:
        return  # frozen
    # Either end gone is both gone: half a connection would keep the other side waiting.
    writer.transport.abort()


class ProxyThread:
    """The same network for tests that are not asynchronous themselves."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def tell(self, do: Callable[[Proxy], None]) -> None:
        """Let the proxy ``do`` something."""
        self._loop.call_soon_threadsafe(do, self._proxy)

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        async with Proxy(self._target) as self._proxy:
            self.port = self._proxy.port
            self._started.set()
            await self._ending.wait()
