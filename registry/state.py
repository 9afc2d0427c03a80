"""The state directory: where everything of one yard lies on disk, and how a client finds the yard that runs.

Owns: the folder's layout and `yard.json`. Never: the contents of the database or of the artifact store.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

DEFAULT_STATE_DIR = ".modelyard"
STATE_DIR_VARIABLE = "MODELYARD_STATE_DIR"
ADMIN_URL_VARIABLE = "MODELYARD_ADMIN_URL"
URL_VARIABLE = "MODELYARD_URL"
ADMIN_TOKEN_VARIABLE = "MODELYARD_ADMIN_TOKEN"  # noqa: S105 - a name, not a token


@dataclass(frozen=True, slots=True)
class YardInfo:
    """What a running control plane says of itself in `yard.json`."""

    pid: int
    url: str
    """The router's base URL for OpenAI clients, without `/v1`."""
    admin_url: str
    """The admin API's base URL, without a path."""
    config: str
    """The configuration file that it was started with; "" where there was none."""
    started_at: float
    """Unix seconds."""
    certificate: str = ""
    """The file of the certificate that the router shows; "" where it speaks plain HTTP."""


@dataclass(frozen=True, slots=True)
class StateDir:
    """Paths below one state directory. Nothing is made until `create` is called."""

    root: Path

    @classmethod
    def find(cls, given: Path | str | None = None) -> StateDir:
        """The directory given, else the one that the environment names, else `.modelyard` here."""
        return cls(Path(given or os.environ.get(STATE_DIR_VARIABLE) or DEFAULT_STATE_DIR).absolute())

    @property
    def yard_json(self) -> Path:
        return self.root / "yard.json"

    @property
    def admin_token(self) -> Path:
        return self.root / "admin.token"

    @property
    def lock(self) -> Path:
        return self.root / "yard.lock"

    @property
    def database(self) -> Path:
        return self.root / "registry.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def workers(self) -> Path:
        return self.root / "workers"

    @property
    def requests(self) -> Path:
        return self.root / "requests"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def spool(self) -> Path:
        """Where workers leave sampled requests and feedback for a moment."""
        return self.samples / "spool"

    @property
    def drift(self) -> Path:
        """References of live drift, and what was found."""
        return self.root / "drift"

    @property
    def samples_database(self) -> Path:
        return self.samples / "samples.db"

    @property
    def engines(self) -> Path:
        return self.root / "engines"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def create(self) -> StateDir:
        """Make the folders, readable by their owner only."""
        kept = (self.artifacts, self.workers, self.requests, self.samples, self.spool, self.engines, self.runs)
        for folder in (self.root, *kept):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def read_yard(self) -> YardInfo | None:
        """The yard that last ran here; None where none did, or where its file is not readable as one."""
        try:
            return YardInfo(**json.loads(self.yard_json.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def token_for(self, admin_url: str) -> str:
        """The credential for the admin API at `admin_url`; "" where none is known.

        The directory's own token goes to its own yard only, whatever a user names: to everybody else goes what the
        environment says.
        """
        yard = self.read_yard()
        if yard is not None and yard.admin_url.rstrip("/") == admin_url.rstrip("/"):
            try:
                return self.admin_token.read_text().strip()
            except OSError:  # another user's yard
                pass
        return os.environ.get(ADMIN_TOKEN_VARIABLE, "").strip()

    def write_yard(self, info: YardInfo) -> None:
        """Replace `yard.json` in one step."""
        temporary = self.yard_json.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(info)))
        temporary.replace(self.yard_json)
