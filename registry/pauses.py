"""Pauses: which models' routes are held where they are, by whom, since when and why.

Owns: their rows. Never: transactions and audit (registry.store), refusing a change (serving.control.changes).
"""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, delete, insert, select

from registry import schema
from registry.models import Pause


def every(connection: Connection) -> dict[str, Pause]:
    """Model -> its pause, for the models that have one."""
    table = schema.route_pauses
    return {row.model: Pause(**row._mapping) for row in connection.execute(select(table).order_by(table.c.model))}


def begin(connection: Connection, pause: Pause) -> Pause | None:
    """Keep a pause in place of the model's earlier one, which is returned."""
    before = end(connection, pause.model)
    connection.execute(insert(schema.route_pauses).values(asdict(pause)))
    return before


def end(connection: Connection, model: str) -> Pause | None:
    """Forget the model's pause, which is returned; None where there is none."""
    before = every(connection).get(model)
    connection.execute(delete(schema.route_pauses).where(schema.route_pauses.c.model == model))
    return before
