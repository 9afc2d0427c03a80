"""The bridge to a hosted API: a process in an environment that has LiteLLM; `hosted.BOOT` starts it.

Owns: one loopback server that turns OpenAI requests into LiteLLM calls and their errors back into OpenAI's, and the
provider's key. Never: importing more of the project than `hosted_wire` and constants (it runs in an environment of its
own), trying again (the router does), forwarding a header of the client's, showing the key: what it writes is searched
for it first.

Exit status: 0 stopped by a signal; 1 the server could not be started (the log says why); 2 LiteLLM is missing or does
not know the model's provider (the last line on standard error is one sentence).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TextIO

from serving.engines.hosted_wire import (
    CHAT,
    COMPLETION,
    EMBEDDING,
    Cut,
    Json,
    Refused,
    arguments,
    capabilities,
    causes,
    error_object,
    passage,
    refusal,
    tidy,
)
from serving.engines.lifecycle import CONFIGURATION_EXIT

KEY: Final = "MODELYARD_HOSTED_KEY"
"""The environment variable that holds the provider's key; taken out of the environment at once."""
CAPABILITIES: Final = "/modelyard/capabilities"
DRAIN_S: Final = 8.0
"""How long a stop waits for answers in flight."""
LOGGED_MAX: Final = 300
BODY_BYTES_MAX: Final = 1024**3
"""The router bounds bodies; this is only a backstop."""


def honest(wrapper: Any) -> None:
    """Have LiteLLM's stream class say that a provider cut a stream, in place of making up `stop` for it."""
    original = wrapper.finish_reason_handler

    def finish_reason_handler(stream: Any) -> Any:
        if stream.received_finish_reason is None and stream.intermittent_finish_reason is None:
            raise Cut
        return original(stream)

    wrapper.finish_reason_handler = finish_reason_handler


class Bridge:
    """Answers OpenAI requests through LiteLLM. `litellm` and `web` (aiohttp's) come in: this file imports neither."""

    def __init__(self, litellm: Any, web: Any, options: Json, key: str) -> None:
        self._litellm = litellm
        self._web = web
        self._options = options
        self._key = key
        self._passage = passage(key).encode()
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def routes(self) -> list[Any]:
        web, lite = self._web, self._litellm
        return [
            *(web.get(path, self._get) for path in ("/health", "/v1/models", CAPABILITIES)),
            web.post("/v1/chat/completions", self._handler(CHAT, lite.acompletion)),
            web.post("/v1/completions", self._handler(COMPLETION, lite.atext_completion)),
            web.post("/v1/embeddings", self._handler(EMBEDDING, lite.aembedding)),
        ]

    async def drained(self, timeout_s: float) -> None:
        """Return when nothing is in flight, or after the time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            say(f"{self._busy} answers were still in flight after {timeout_s:g} s: they are cut off")

    async def _get(self, request: Any) -> Any:
        """Readiness, names and capabilities: none of them asks the provider."""
        entry = {"id": self._options["ref"], "object": "model", "created": 0, "owned_by": "hosted"}
        answers: dict[str, Json] = {
            "/health": {"status": "ok"},
            "/v1/models": {"object": "list", "data": [entry]},
            CAPABILITIES: capabilities(self._options, self._litellm.model_cost),
        }
        return self._json(200, answers[request.path])

    def _handler(self, known: frozenset[str], call: Callable[..., Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def answer(request: Any) -> Any:
            self._busy += 1
            self._idle.clear()
            try:
                self._let_in(request)
                return await self._answer(request, known, call)
            except Refused as error:
                return self._refuse(error)
            finally:
                self._busy -= 1
                if not self._busy:
                    self._idle.set()

        return answer

    def _let_in(self, request: Any) -> None:
        """Raise Refused (401) where the request is not the router's."""
        said = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(said, self._passage) and self._passage:
            raise Refused(
                401, error_object("This bridge answers its router only.", "invalid_request_error", "not_let_in")
            )

    async def _answer(self, request: Any, known: frozenset[str], call: Callable[..., Awaitable[Any]]) -> Any:
        given = arguments(await request.read(), known, self._options, self._key)
        try:
            answer = await call(**given)
            if not given.get("stream"):
                return self._json(200, tidy(answer.model_dump()))
            events = aiter(answer)
            first = await anext(events)
        except Exception as error:
            raise self._failed(error) from None
        return await self._stream(request, answer, events, first)

    async def _stream(self, request: Any, stream: Any, events: Any, chunk: Any) -> Any:
        """Chunks as they come. A stream that the provider cut ends with an error event, never with [DONE]."""
        headers = {"content-type": "text/event-stream", "cache-control": "no-cache"}
        response = self._web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            while chunk is not None:
                await response.write(b"data: " + self._encoded(tidy(chunk.model_dump())) + b"\n\n")
                chunk = await anext(events, None)
            await response.write(b"data: [DONE]\n\n")
        except (ConnectionError, asyncio.CancelledError):
            raise  # the client is gone
        except Exception as error:
            await response.write(b"data: " + self._encoded({"error": self._failed(error).error}) + b"\n\n")
        finally:
            if hasattr(stream, "aclose"):
                await stream.aclose()
        await response.write_eof()
        return response

    def _failed(self, error: Exception) -> Refused:
        """The answer to a failed call; where the fault is not the client's, one line of the log."""
        found = refusal(error, self._options)
        if found.status >= 500:
            names = " from ".join(type(one).__name__ for one in causes(error))
            say(f"{found.error['code']} ({found.status}): {names}: {str(list(causes(error))[-1])[:LOGGED_MAX]!r}")
        return found

    def _refuse(self, error: Refused) -> Any:
        headers = {"retry-after": error.retry_after} if error.retry_after else {}
        return self._json(error.status, {"error": error.error}, headers)

    def _json(self, status: int, value: Json, headers: Mapping[str, str] | None = None) -> Any:
        return self._web.Response(
            status=status, body=self._encoded(value), content_type="application/json", headers=headers
        )

    def _encoded(self, value: Json) -> bytes:
        return hidden(json.dumps(value, separators=(",", ":"), ensure_ascii=False), self._key).encode()


def hidden(text: str, key: str) -> str:
    """The text without the key: a provider's error may quote it."""
    return text.replace(key, "[key]") if key else text


class Discreet:
    """Standard output or error that never shows the key, whatever a library logs."""

    def __init__(self, stream: TextIO, key: str) -> None:
        self._stream = stream
        self._key = key

    def write(self, text: str) -> int:
        self._stream.write(hidden(text, self._key))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def say(text: str) -> None:
    sys.stderr.write(text.rstrip() + "\n")
    sys.stderr.flush()


def quiet_litellm() -> Any:
    """LiteLLM with nothing that calls home, keeps a cache, tries again or prints. Raises ImportError."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import fetches the price map
    os.environ["HF_HUB_OFFLINE"] = "1"
    import litellm  # noqa: PLC0415 - seconds and 160 MB, only here

    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    litellm.turn_off_message_logging = True
    litellm.user_url_validation = True
    litellm.num_retries = 0
    litellm.cache = None
    for name in ("callbacks", "success_callback", "failure_callback", "input_callback"):
        setattr(litellm, name, [])
    honest(litellm.CustomStreamWrapper)
    return litellm


async def warm(litellm: Any, model: str) -> None:
    """Have LiteLLM load what it loads with its first call, by one that it answers itself: no network, no money."""
    with contextlib.suppress(Exception):
        await litellm.acompletion(
            model=model, messages=[{"role": "user", "content": "hi"}], api_key="none", mock_response="hi"
        )


async def serve(litellm: Any, web: Any, options: Json, key: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is in flight."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    bridge = Bridge(litellm, web, options, key)
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.add_routes(bridge.routes())
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await warm(litellm, options["model"])
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    say(f"listening on http://127.0.0.1:{port}")
    await stop.wait()
    watchdog = threading.Timer(DRAIN_S + 1.0, os._exit, (0,))
    watchdog.daemon = True
    watchdog.start()
    await site.stop()
    await bridge.drained(DRAIN_S)
    await runner.cleanup()


def main() -> int:
    """Parse, import, serve; see the module's docstring for the exit status."""
    parser = argparse.ArgumentParser(description="Speaks the OpenAI API for a hosted model, by LiteLLM.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--options", required=True, help="JSON: ref, model, engine_args, sampling, api_base")
    given = parser.parse_args()
    options: Json = json.loads(given.options)
    key = os.environ.pop(KEY, "")
    sys.stdout, sys.stderr = Discreet(sys.stdout, key), Discreet(sys.stderr, key)
    try:
        litellm = quiet_litellm()
        from aiohttp import web  # noqa: PLC0415 - LiteLLM's own requirement
    except ImportError as error:
        say(f"LiteLLM cannot be imported ({error}): install it with `make hosted` or `pip install '.[hosted]'`")
        return CONFIGURATION_EXIT
    try:
        litellm.get_llm_provider(options["model"], api_base=options["api_base"] or None)
    except Exception:
        say(f"LiteLLM knows no provider of {options['model']!r}: write PROVIDER/MODEL, e.g. openai/gpt-4o-mini")
        return CONFIGURATION_EXIT
    try:
        asyncio.run(serve(litellm, web, options, key, given.port))
    except OSError as error:
        say(f"the bridge cannot listen on port {given.port}: {error}")
        return 1
    sys.stdout.flush()
    os._exit(0)  # threads that LiteLLM left waiting keep nobody
