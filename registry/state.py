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
    def engines(self) -> Path:
        return self.root / "engines"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def create(self) -> StateDir:
        """Make the folders, readable by their owner only."""
        for folder in (self.root, self.artifacts, self.workers, self.requests, self.engines, self.runs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def read_yard(self) -> YardInfo | None:
        """The yard that last ran here; None where none did, or where its file is not readable as one."""
        try:
            return YardInfo(**json.loads(self.yard_json.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_yard(self, info: YardInfo) -> None:
        """Replace `yard.json` in one step."""
        temporary = self.yard_json.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(info)))
        temporary.replace(self.yard_json)
