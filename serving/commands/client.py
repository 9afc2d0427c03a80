"""The admin API as the commands see it: JSON in, JSON out, and every failure one sentence.

Owns: finding the yard and its admin token, HTTP to it, turning its errors into exit codes. Never: what is asked. The
standard library's HTTP client, because importing httpx takes 300 ms and a command should not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from registry.state import ADMIN_URL_VARIABLE, StateDir
from registry.terminal import NotThereError, UserError

START = "start one with `modelyard up configs/quickstart.yaml`"
PATHS = frozenset(
    {
        "models",
        "versions",
        "aliases",
        "route",
        "history",
        "rollback",
        "retire",
        "engines",
        "log",
        "workers",
        "restart",
        "gates",
        "console",
        "links",
    }
)
"""Parts of paths that name nothing."""


class AdminClient:
    """Requests to one admin API."""

    def __init__(self, url: str, *, token: str = "", timeout_s: float = 30.0) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # what is no port, or no IPv6 address
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"the admin URL {url!r} is not of the form http://HOST:PORT")
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host, self._port, self._prefix = parts.hostname, port, parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"accept": "application/json", "x-modelyard-actor": actor()}
        if token:
            if not (token.isascii() and token.isprintable()):
                raise UserError("the admin token has characters that cannot be sent: copy it again")
            self._headers["authorization"] = f"Bearer {token}"

    @classmethod
    def find(cls, admin_url: str | None, state_dir: Path | str | None, *, timeout_s: float = 30.0) -> AdminClient:
        """The yard that is named, else the environment's, else the state directory's."""
        given = admin_url or os.environ.get(ADMIN_URL_VARIABLE)
        state = StateDir.find(state_dir)
        if given:
            return cls(given, token=state.token_for(given), timeout_s=timeout_s)
        yard = state.read_yard()
        if yard is None:
            raise NotThereError(f"no yard runs in {shown(state.root)}: {START}, or name another with --state-dir")
        return cls(yard.admin_url, token=state.token_for(yard.admin_url), timeout_s=timeout_s)

    def get(self, *path: str, **query: Any) -> Any:
        """The JSON at /admin/v1/PATH."""
        return self.send("GET", *path, query=query)

    def text(self, *path: str, **query: Any) -> str:
        """The text at /admin/v1/PATH, of whatever form it is."""
        status, content = self._exchange("GET", self._target(path, query), None, dict(self._headers))
        if status >= 400:
            try:
                value = json.loads(content)
            except ValueError:
                value = None
            raise self._error(status, value, list(path))
        return content.decode("utf-8", "replace")

    def _target(self, path: Sequence[str], query: Mapping[str, Any] | None) -> str:
        for part in path:
            if not part or "/" in part:
                raise UserError(f"{part!r} is not a name: names are letters, digits, '.', '_' and '-'")
        target = self._prefix + "/admin/v1/" + "/".join(quote(part, safe="") for part in path)
        wanted = {key: value for key, value in (query or {}).items() if value not in (None, "")}
        return target + ("?" + urlencode(wanted) if wanted else "")

    def send(self, method: str, *path: str, query: dict[str, Any] | None = None, body: Any = None) -> Any:
        """Ask and return the JSON of the answer. Raises NotThereError or UserError."""
        target = self._target(path, query)
        headers = dict(self._headers)
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        status, content = self._exchange(method, target, data, headers)
        try:
            value = json.loads(content) if content else None
        except ValueError:
            raise NotThereError(f"what answers at {self.url} is no admin API of Modelyard (status {status})") from None
        if status >= 400:
            raise self._error(status, value, [*path, *_words(body)])
        return value

    def _exchange(self, method: str, target: str, data: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        import http.client  # noqa: PLC0415 - 20 ms that --help need not take

        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, target, body=data, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except TimeoutError:
            raise NotThereError(f"the admin API at {self.url} did not answer within {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException):
            raise NotThereError(f"no yard answers at {self.url}: {START}") from None
        finally:
            connection.close()

    def _error(self, status: int, value: Any, words: list[str]) -> UserError:
        """The answer's own sentence with the exit code that it deserves."""
        found = value.get("error") if isinstance(value, dict) else None
        if not isinstance(found, dict) or not found.get("message"):
            return NotThereError(f"what answers at {self.url} is no admin API of Modelyard (status {status})")
        message = str(found["message"])
        if status == 404 and found.get("code") == "unknown_path":
            return NotThereError(f"what answers at {self.url} is no admin API of Modelyard: {message}")
        if status == 404 and found.get("code") == "not_found" and words[0] not in ("engines", "keys"):
            message += self._nearest(words)
        if status >= 500:
            return NotThereError(f"the control plane could not do it: {message}")
        return NotThereError(message) if found.get("code") == "dependency_missing" else UserError(message)

    def _nearest(self, words: list[str]) -> str:
        """`; did you mean …?` for a name that is nearly one of those that there are; "" where none is."""
        status, content = self._exchange("GET", self._prefix + "/admin/v1/models", None, self._headers)
        if status != 200:
            return ""
        import difflib  # noqa: PLC0415 - only on this way

        models = json.loads(content)
        named = {one["model"]: [*one["versions"], *one["aliases"]] for one in models}
        known = {*named, *(label for name in words for label in named.get(name, ()))}
        for word in words:
            if word not in known and word not in PATHS:
                near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
                if near:
                    return f"; did you mean {near[0]!r}?"
        return ""


def _words(body: Any) -> list[str]:
    """The labels that a request's body names."""
    if not isinstance(body, dict):
        return []
    return [*body.get("weights", ()), *([body["label"]] if isinstance(body.get("label"), str) else [])]


@contextmanager
def goes_on(command: str) -> Iterator[None]:
    """Ctrl-C ends the waiting, not what the control plane does: say so, and which command shows how it ended."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"modelyard: not waiting any longer; the yard goes on with it, see `{command}`\n")
        raise


def actor() -> str:
    """Who is asking, for the audit: the user's name on this machine."""
    import getpass  # noqa: PLC0415 - not for --help

    try:
        return os.environ.get("MODELYARD_ACTOR") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def shown(path: Path) -> str:
    """A path as a person would write it: relative where it lies below the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
