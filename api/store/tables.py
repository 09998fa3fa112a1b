"""The schema, once for Postgres and SQLite. Times are Unix seconds: whole in what OpenAI's objects show, else floating.

    files 1─* file_chunks          batches 1─* batch_items 1─0..1 results 1─1 usage

A job published directly has rows in `results` and `usage` only. `results` is the ledger: its primary key makes an
outcome and its usage count once, however often the message comes. A row of `responses` names its job's.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

files = Table(
    "files",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, index=True),
    Column("filename", Text, nullable=False),
    Column("purpose", String, nullable=False),
    # "writing" until its last chunk is in (and, of a batch's output, until the batch ends): such a file is nobody's.
    Column("status", String, nullable=False),
    Index(None, "owner", "id"),
    CheckConstraint("status in ('writing', 'processed')", name="status"),
)

file_chunks = Table(
    "file_chunks",
    metadata,
    Column("file_id", String, ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("input_file_id", String, nullable=False),
    Column("completion_window", String, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("metadata", Text),
    Column("errors", Text),
    Column("output_expires_after", BigInteger),
    Column("output_file_id", String),
    Column("error_file_id", String),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("total", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    # The dispatcher that works on this batch, and until when it may without renewing.
    Column("lease_owner", String),
    Column("lease_until", Double),
    Index(None, "owner", "id"),
)

batch_items = Table(
    "batch_items",
    metadata,
    Column("batch_id", String, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("custom_id", Text, nullable=False),
    Column("job_id", String, nullable=False, unique=True),
    Column("model", String, nullable=False),
    # The encoded Job, ready to publish; empty where the line was refused.
    Column("message", Text, nullable=False),
    # Why the line was refused, as an encoded ErrorInfo.
    Column("rejected", Text),
    Column("state", String, nullable=False),
    Index(None, "batch_id", "state", "line"),
    CheckConstraint("state in ('pending', 'dispatched', 'done')", name="state"),
)

results = Table(
    "results",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("model", String, nullable=False),
    Column("job_class", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("error", Text),
    Column("choices", Text),
    Column("created", Double, nullable=False),
    Column("started", Double, nullable=False),
    Column("finished", Double, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("worker", String, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("job_id", String, ForeignKey("results.job_id", ondelete="CASCADE"), primary_key=True),
    Column("owner", String, nullable=False),
    Column("model", String, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    Column("finished_at", BigInteger, nullable=False),
    Index(None, "owner", "finished_at"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("fingerprint", String, nullable=False),
    # Of a file, of a batch, or of the jobs of a completion: <id>, or <id>-0, <id>-1, ... where there are several.
    Column("object_id", String, nullable=False),
    Column("jobs", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    # When the request was accepted; until then the key is merely claimed, and the claim lapses soon.
    Column("accepted_at", Double),
    Column("expires_at", Double, nullable=False, index=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", Text, nullable=False),
    Column("hash", String, nullable=False, unique=True),
    # The secret's end, by which its holder recognises it.
    Column("hint", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

responses = Table(
    "responses",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    # Its outcome and output are in `results`, under this id.
    Column("job_id", String, nullable=False),
    Column("previous_id", String),
    Column("request", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("cancelled_at", Double),
    # 0 where it is deleted: nobody sees it, and it is dropped once its job has ended.
    Column("expires_at", Double, nullable=False, index=True),
)
