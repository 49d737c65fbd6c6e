"""A server within the test's process, on a loop of its own, for clients that block."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.server.app import Application, Listening
from trimtab.server.config import ListenConfig, ServerConfig

LISTEN = ListenConfig(host="127.0.0.1", port=0, admin_port=0, metrics=False, frontend="portable")


@contextlib.contextmanager
def serving(models_dir: Path, listen: ListenConfig, **settings: Any) -> Iterator[Listening]:
    """Until the block ends; on the addresses that it says. `settings`: others of the server's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> Application:
        return Application(ServerConfig(models_dir, server=listen, **settings))

    try:
        served = asyncio.run_coroutine_threadsafe(make(), loop).result(30)
        try:
            yield asyncio.run_coroutine_threadsafe(served.start(), loop).result(30)
        finally:
            asyncio.run_coroutine_threadsafe(served.stop(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
