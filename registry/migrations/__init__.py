"""How the database came to its present shape, one step a file in `versions/`; run by registry.database at opening.

Owns: the steps and their order. Never: anything that is not a change of tables. A step that was released never changes.
"""

from __future__ import annotations

from typing import Final

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every step, oldest first. Kept here so that opening an up-to-date database does not import alembic."""

HEAD: Final = REVISIONS[-1]
