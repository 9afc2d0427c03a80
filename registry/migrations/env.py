"""Run by alembic: migrate on the connection, and in the transaction, that registry.database hands in."""

from __future__ import annotations

from alembic import context

from registry.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=False,
)
context.run_migrations()
