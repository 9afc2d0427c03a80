"""Opening: created, migrated, refused; and transactions that outlive a killed writer."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, create_mock_engine
from sqlalchemy.engine.mock import MockConnection

import registry.migrations
from registry import schema
from registry.database import connect, read, write
from registry.errors import DatabaseError
from registry.store import Registry


def test_a_migrated_database_is_what_the_schema_says(tmp_path: Path) -> None:
    engine = connect(tmp_path / "registry.db")
    with read(engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    engine.dispose()


def test_the_known_revisions_are_the_shipped_ones() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(registry.migrations.__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [registry.migrations.HEAD]
    shipped = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(shipped)) == registry.migrations.REVISIONS


def test_the_tables_can_be_made_on_postgresql() -> None:
    statements: list[str] = []

    def compiled(statement: Any, *_: object) -> None:
        statements.append(str(statement.compile(dialect=engine.dialect)))

    engine: MockConnection = create_mock_engine("postgresql://", compiled)
    schema.metadata.create_all(engine, checkfirst=False)
    assert sum("CREATE TABLE" in statement for statement in statements) == len(schema.metadata.tables)


def test_opening_an_up_to_date_database_is_quick_and_imports_no_alembic(tmp_path: Path) -> None:
    Registry.open(tmp_path / "registry.db").close()
    code = (
        "import sys, time; from registry.store import Registry; took = []\n"
        "for _ in range(3):\n"
        "    start = time.process_time()\n"
        f"    Registry.open({str(tmp_path / 'registry.db')!r}).close()\n"
        "    took.append(time.process_time() - start)\n"
        "assert 'alembic' not in sys.modules\n"
        "print(min(took))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.1


def test_it_is_durable_and_does_not_block_readers(tmp_path: Path) -> None:
    engine = connect(tmp_path / "folder" / "registry.db")
    with read(engine) as connection:
        for pragma, value in (("journal_mode", "wal"), ("foreign_keys", 1), ("synchronous", 2)):
            assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value
    with write(engine), read(engine) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM models").scalar() == 0
    engine.dispose()


def test_a_database_from_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    connect(path).dispose()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(DatabaseError, match="newer release of Modelyard") as caught:
        connect(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database at all, but long enough to have a header" * 10)
    (tmp_path / "file").write_text("")
    for location, words in (
        (tmp_path / "text.db", "not a database"),
        (tmp_path / "file" / "registry.db", "folder"),
        (tmp_path, "cannot be used"),
        ("nonsense://x", "driver"),
        ("://", "parsed"),
    ):
        with pytest.raises(DatabaseError, match=words) as caught:
            connect(location)
        assert "\n" not in str(caught.value)


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    engine = connect(tmp_path / "registry.db")

    def fail() -> None:
        with write(engine) as connection:
            connection.exec_driver_sql("INSERT INTO cursors VALUES ('x', 1)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with write(engine) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM cursors").scalar() == 0
    engine.dispose()


def test_processes_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    code = f"from registry.store import Registry; Registry.open({str(path)!r}).close()"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()


def test_a_killed_writer_leaves_no_lock_and_no_half(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    engine = connect(path)
    code = (
        "import time; from registry.database import connect, write\n"
        f"with write(connect({str(path)!r})) as c:\n"
        "    c.exec_driver_sql(\"INSERT INTO cursors VALUES ('x', 1)\")\n"
        "    print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    started = time.monotonic()
    with write(engine) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM cursors").scalar() == 0
    assert time.monotonic() - started < 30  # its maker sleeps for a minute, and would hold a lock as long
    engine.dispose()


def test_routes_from_before_segments_are_read_as_having_none(tmp_path: Path) -> None:
    """A database of the first release, with a route in it, is brought up to date by opening it."""
    from alembic import command

    path = tmp_path / "registry.db"
    config = Config()
    config.set_main_option("script_location", str(Path(registry.migrations.__file__).parent))
    old = create_engine(f"sqlite:///{path}")
    with old.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO models VALUES ('m', 'ab', 1)")
        connection.exec_driver_sql(
            "INSERT INTO routes VALUES ('m', 1, '[[\"v1\", 10000]]', '[[0, 10000, \"v1\"]]', '[]', '[]', NULL, 1, 'me')"
        )
    old.dispose()
    opened = Registry.open(path)
    route = opened.route("m")
    opened.close()
    assert route is not None
    assert (route.weights, route.segments, route.shadows) == ({"v1": 10_000}, (), ())
