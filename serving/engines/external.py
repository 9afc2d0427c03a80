"""An engine that somebody else runs: any OpenAI-compatible URL.

Owns: how it is reached and known to be ready. Never: a process.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from serving.engines.base import EngineError, EngineKind, EngineVersion, Launch, nearest, text_argument

_KNOWN: Final = frozenset({"model"})
_PORTS: Final = {"http": 80, "https": 443}


class External:
    """`engine: external` with `url:`; `engine_args: {model: NAME}` names the model there, where it differs."""

    name = "external"

    def check(self, version: EngineVersion) -> None:
        self.launch(version, 0)

    def launch(self, version: EngineVersion, port: int) -> Launch:
        """`port` is not used: the URL has its own."""
        url = urlsplit(version.manifest.url)
        if url.scheme not in _PORTS or not url.hostname:
            raise EngineError(f"{version.ref}: url {version.manifest.url!r} is not of the form http://HOST:PORT")
        for name in version.manifest.engine_args:
            if name not in _KNOWN:
                raise EngineError(f"{version.ref}: unknown engine_args.{name}: {nearest(name, _KNOWN)}")
        model = text_argument(version, "model")
        return Launch(
            argv=(),
            host=url.hostname,
            port=url.port or _PORTS[url.scheme],
            base_url=version.manifest.url.rstrip("/"),
            ready_paths=("/health", "/v1/models"),
            served_names=(model,) if model else (),
            headers={"Authorization": version.authorization} if version.authorization else {},
        )

    def environment(self, version: EngineVersion) -> dict[str, str]:
        """Nothing is known of what runs elsewhere."""
        return {}


KIND: Final[EngineKind] = External()
