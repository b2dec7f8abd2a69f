"""Replies that a judge has given, and what has been spent on them, in SQLite: for several processes, and resumed runs.

Its locks want a disk of the machine itself: no network file system.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

# What a statement waits for another process's; each one takes well below a millisecond.
BUSY_TIMEOUT_S = 30.0
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT NOT NULL, reply TEXT NOT NULL)"
    " WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spent (id INTEGER PRIMARY KEY CHECK (id = 1), requests INTEGER, tokens INTEGER)",
    "INSERT OR IGNORE INTO spent VALUES (1, 0, 0)",
)


class JudgeStore:
    """Replies by the hash of their request, and the requests and tokens spent by all that share the file."""

    def __init__(self, path: str | None) -> None:
        """A file, made if it is not there; None keeps all in memory. ValueError if it can't be used."""
        self._path = None if path is None else Path(path).expanduser()
        self._connection: sqlite3.Connection | None = None
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _open(str(self._path)).close()
            except (OSError, sqlite3.Error) as error:
                raise ValueError(f"cache: {self._path} can't be used: {error}") from None

    def find(self, key: str) -> str | None:
        """The reply to a request, or None."""
        row = self._connect().execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def keep(self, key: str, *, model: str, reply: str) -> None:
        self._connect().execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, model, reply))

    def take_request(self, *, max_requests: int | None, max_tokens: int | None) -> bool:
        """Count a request if both budgets allow it, in one step also between processes."""
        update = (
            "UPDATE spent SET requests = requests + 1"
            " WHERE (:requests IS NULL OR requests < :requests) AND (:tokens IS NULL OR tokens < :tokens)"
        )
        return self._connect().execute(update, {"requests": max_requests, "tokens": max_tokens}).rowcount == 1

    def add_tokens(self, num_tokens: int) -> None:
        self._connect().execute("UPDATE spent SET tokens = tokens + ?", (num_tokens,))

    def spent(self) -> tuple[int, int]:
        """Requests and tokens so far."""
        return self._connect().execute("SELECT requests, tokens FROM spent").fetchone()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        # Not in the constructor: a connection does not survive a fork.
        if self._connection is None:
            self._connection = _open(":memory:" if self._path is None else str(self._path))
        return self._connection


def _open(name: str) -> sqlite3.Connection:
    # isolation_level=None: every statement is a transaction of its own, so that no lock outlives it.
    connection = sqlite3.connect(name, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    # A power cut may lose the last replies, not the file.
    connection.execute("PRAGMA synchronous = NORMAL")
    for statement in SCHEMA:
        connection.execute(statement)
    return connection
