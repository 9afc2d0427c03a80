"""One attempt to tell a webhook of an event.

Owns: the request and what counts as taken. Never: when it is tried (drift_watch), following a redirect, reading a body.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec

from monitoring.drift_watch_episodes import EVENT, signature


async def post(url: str, event: dict[str, Any], *, secret: str, now: float, timeout_s: float) -> str:
    """Send the event once. Returns "" where a 2xx came in time, else what happened, in a few words."""
    body = msgspec.json.encode(event)
    timestamp = str(int(now))
    headers = {
        "content-type": "application/json",
        "user-agent": "modelyard",
        "x-modelyard-event": EVENT,
        "x-modelyard-delivery": str(event["id"]),
        "x-modelyard-timestamp": timestamp,
    }
    if secret:
        headers["x-modelyard-signature"] = signature(secret, timestamp, body)
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(trust_env=False, timeout=timeout_s, follow_redirects=False) as client,
            client.stream("POST", url, content=body, headers=headers) as answer,
        ):
            return "" if answer.is_success else f"status {answer.status_code}"
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except httpx.TimeoutException:
        return f"no answer within {timeout_s:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")[:200]
