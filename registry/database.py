"""Opening the database, and its two kinds of transaction: many readers, one writer at a time.

Owns: connection settings, transactions, migration at opening. Never: tables, queries.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError

from registry.errors import DatabaseError
from registry.migrations import HEAD, REVISIONS

BUSY_TIMEOUT_MS: Final = 10_000
_WRITER: Final = "modelyard_writer"
_POSTGRES_LOCK: Final = 0x6D6F_6465_6C79
"""The advisory lock that writers of one PostgreSQL database take; any constant would do."""


def connect(location: str | Path) -> Engine:
    """An engine for a path or an SQLAlchemy URL, its database created or migrated where needed.

    Raises DatabaseError where it cannot be opened or was written by a newer release.
    """
    url = _url(location)
    engine = _engine(url)
    try:
        with _explained(engine):
            _prepare(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database throughout."""
    with _explained(engine), engine.connect() as connection:
        yield connection


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other writer runs beside: what it reads stays true until it commits.

    Commits at the end of the block; rolls back where the block raises.
    """
    with _explained(engine), engine.execution_options(**{_WRITER: True}).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})
        yield connection


def _url(location: str | Path) -> URL:
    if isinstance(location, str) and "://" in location:
        try:
            return make_url(location)
        except ArgumentError as error:
            raise DatabaseError("the database URL cannot be parsed", remedy="write e.g. sqlite:///path") from error
    return URL.create("sqlite", database=str(location))


def _engine(url: URL) -> Engine:
    try:
        engine = create_engine(url)
    except (ImportError, ArgumentError) as error:
        raise DatabaseError(
            f"no driver for {url.drivername} databases is installed ({error})", remedy="install it with pip"
        ) from error
    if engine.dialect.name == "sqlite":
        if url.database:
            try:
                Path(url.database).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseError(f"the folder of {url.database} cannot be made ({error.strerror})") from error
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
    return engine


def _configure(dbapi_connection: Any, _record: object) -> None:
    # The driver must not begin transactions on its own: `_begin` does, with the lock that the block needs.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITER)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        _use_wal(engine)
    with read(engine) as connection:
        revision = _revision(connection, engine)
    if revision != HEAD:
        with write(engine) as connection:
            if _revision(connection, engine) != HEAD:  # another process may have been first
                _upgrade(connection)


def _use_wal(engine: Engine) -> None:
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.close()
    finally:
        raw.close()


def _revision(connection: Connection, engine: Engine) -> str | None:
    """The migration that the database is at, None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision is not None and revision not in REVISIONS:
        raise DatabaseError(
            f"{_name(engine)} was written by a newer release of Modelyard (its schema is {revision!r}, "
            f"this release knows {HEAD!r})",
            remedy="start that release or a newer one, or use another state directory",
        )
    return revision


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415  half a second to import, needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _name(engine: Engine) -> str:
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    return engine.url.render_as_string(hide_password=True)


@contextmanager
def _explained(engine: Engine) -> Iterator[None]:
    """Turn a failure of the database itself into one sentence. A broken constraint is a bug and stays what it is."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, sqlite3.Error) as error:  # the driver's own come from settings at connecting
        raise _sentence(engine, error) from error


def _sentence(engine: Engine, error: DBAPIError | sqlite3.Error) -> DatabaseError:
    cause = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
    remedies = {
        "locked": "another process has held it for long; stop that process and try again",
        "full": "free some space on its file system and try again",
        "readonly": "give this user the right to write to it and to its folder",
        "unable to open": "check that its folder exists and may be written to",
        "not a database": "move the file away, or restore it from a backup",
        "malformed": "restore it from a backup",
    }
    remedy = next(
        (remedy for word, remedy in remedies.items() if word in cause), "check that the database is reachable"
    )
    return DatabaseError(f"the database {_name(engine)} cannot be used ({cause})", remedy=remedy)
