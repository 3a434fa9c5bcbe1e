"""The tables of jobs, and a database opened so that two processes can write to it."""

import sqlite3
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from reward_api import ItemError

BUSY_TIMEOUT_S = 30  # one writer at a time; the others wait this long for it
metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("idempotency_key", String(255), unique=True),
    Column("digest", String(64), nullable=False),  # of all that was asked: tells a repeated request from another one
    Column("state", String(16), nullable=False, index=True),
    Column("item_count", Integer, nullable=False),
    Column("deterministic", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
)

images = Table(
    "images",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("size_bytes", Integer, nullable=False),
    Column("used_at", Float, nullable=False),
)

chunks = Table(
    "chunks",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("turn", Float, nullable=False),  # chunks are sent in this order
    Column("token", String(32)),  # of the one message that may claim the chunk; none while it waits for its turn
    Column("lease_until", Float, nullable=False),  # not sent (again) before
    Column("claims", Integer, nullable=False, default=0),  # by workers of whom nothing was heard since
    Column("troubles", Integer, nullable=False, default=0),  # tries in a row without a new score
    Column("done_at", Float),
)

items = Table(
    "items",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),  # the index in the request
    Column("chunk_id", ForeignKey("chunks.id", ondelete="CASCADE"), index=True),
    Column("image", ForeignKey("images.digest"), index=True),
    Column("content", Text),  # {"metadata", "prompt"} as JSON
)

# What is asked of an item, and its end: a version says that `scores` has the score, an error code that there is none.
entries = Table(
    "entries",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("reward", Text, primary_key=True),
    Column("content_key", String(64), index=True),
    Column("version", Text),
    Column("error_code", String(64)),
    Column("error_message", Text),
    ForeignKeyConstraint(["job_id", "number"], ["items.job_id", "items.number"], ondelete="CASCADE"),
)

scores = Table(
    "scores",
    metadata,
    Column("content_key", String(64), primary_key=True),
    Column("reward", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("score", Float, nullable=False),
    Column("details", Text, nullable=False),
    Column("scored_at", Float, nullable=False),
)

Index("chunks_by_lease", chunks.c.done_at, chunks.c.lease_until)


def open_database(url: str) -> tuple[Engine, Engine]:
    """(for reading, for writing) on one pool; the tables are made where they are missing.

    On SQLite a writing transaction takes the lock at its start (BEGIN IMMEDIATE): one that read first and wrote
    later could fail half-way where another process wrote in between. Raises ValueError.
    """
    try:
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        writing = engine.execution_options(writes=True)
        with writing.begin() as connection:
            metadata.create_all(connection)
    except SQLAlchemyError as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise ValueError(f"the database of the jobs cannot be opened: {cause}") from error
    return engine, writing


def insert_new(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that leaves rows alone whose key is there already; `rowcount` tells."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def failed(error: ItemError) -> dict[str, str]:
    """The columns of an entry that ended in an error. PostgreSQL's texts have no NUL."""
    return {"error_code": str(error.code), "error_message": error.message.replace("\0", "\ufffd")}


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where sqlite3 guesses
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    # FULL: what was answered with 202 survives a loss of power. It also makes last what was committed before.
    connection.exec_driver_sql(f"PRAGMA synchronous = {'NORMAL' if options.get('hasty') else 'FULL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")
