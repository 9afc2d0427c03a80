"""Clients in the background: requests without pause from several tasks, every answer checked."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

import httpx


@dataclass
class Load:
    """Keeps `clients` requests in flight against `url` until left; what went wrong is in `failures`.

    A stream must end with [DONE], a whole answer with status 200. Every request carries a session of its own.
    """

    url: str
    clients: int = 4
    stream: bool = True
    max_tokens: int = 64
    model: str = "assistant"
    failures: list[str] = field(default_factory=list)
    completed: int = 0
    versions: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Let what is in flight finish."""
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as client:
            await asyncio.gather(*(self._client(client, number) for number in range(self.clients)))

    async def _client(self, client: httpx.AsyncClient, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": f"Count to {count}."}],
                "stream": self.stream,
                "max_tokens": self.max_tokens,
            }
            headers = {"x-session-id": f"{number}-{count}"}
            try:
                async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                    text = (await response.aread()).decode()
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                continue
            if response.status_code != 200 or (self.stream and "data: [DONE]" not in text):
                self.failures.append(f"{response.status_code}: {text[-300:]}")
            else:
                self.completed += 1
                self.versions[response.headers["x-modelyard-version"]] += 1
