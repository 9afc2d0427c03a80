"""Who changed what, and when?

Owns: the list of changes and its filter. Never: writing the audit (the registry does).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from monitoring.console.differences import differences
from monitoring.console.shell import Page, Shell

PAGE = Page("/audit", "Audit", "Who changed what, and when.", order=80)
READ_MAX: Final = 2000
SHOWN: Final = 100
WORDS: Final = {
    "route.set": "changed the weights",
    "route.forced": "changed the weights by force",
    "route.rollback": "rolled back",
    "route.pause": "paused a route",
    "route.resume": "let a route go on",
    "route.rules": "changed the rules of a route",
    "gate.record": "recorded the verdict of a gate",
    "alias.set": "moved an alias",
    "version.register": "registered a version",
    "version.retire": "retired a version",
    "model.create": "added a model",
    "config.apply": "applied a configuration",
    "workers.restart": "replaced the workers",
    "engine.restart": "restarted an engine",
    "key.create": "made an API key",
    "key.revoke": "revoked an API key",
    "drift.pin": "pinned a drift reference",
    "drift.unpin": "removed a drift reference",
}


def routes(shell: Shell) -> APIRouter:
    """The routes, over one source."""
    router = APIRouter()

    @router.get(PAGE.path)
    async def audit(
        request: Request,
        subject: Annotated[str, Query(max_length=200)] = "",
        action: Annotated[str, Query(max_length=100)] = "",
        q: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        entries = await shell.source.audit(subject=subject, limit=READ_MAX)
        everything = entries if not subject else await shell.source.audit(limit=READ_MAX)
        found = [one for one in entries if (not action or one["action"] == action) and _says(one, q)]
        return shell.render(
            request,
            PAGE,
            "audit.html",
            entries=[_shown(one) for one in found[:SHOWN]],
            total=len(found),
            subjects=sorted({one["subject"] for one in everything}),
            actions=sorted({one["action"] for one in everything}),
            wanted={"subject": subject, "action": action, "q": q},
            words=WORDS,
        )

    return router


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    words = WORDS.get(entry["action"], entry["action"])
    return entry | {"words": words, "changes": differences(entry["before"], entry["after"])}


def _says(entry: dict[str, Any], text: str) -> bool:
    """Whether any word of the entry has the text in it."""
    where = f"{entry['actor']} {entry['action']} {entry['subject']} {entry['before']} {entry['after']}"
    return text.lower() in where.lower()
