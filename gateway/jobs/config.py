"""Where jobs are kept and how they are worked off; the section `jobs` of the gateway's YAML."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class JobsConfig(BaseModel):
    """Gateway and workers read the same section. `jobs: {}` keeps everything in files, without a server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Stored images; a relative path starts at the folder of the configuration file.
    folder: Path = Field(Path("runs/jobs"), validate_default=True)
    database: str | None = None  # a URL of SQLAlchemy; without one, SQLite in `folder`, which must be a local disk
    broker: str | None = None  # redis://HOST:PORT/N; without one, messages are files in `folder`
    gateway: str = Field("http://127.0.0.1:8000", pattern=r"^https?://[^/]+")  # where workers send items

    max_items: int = Field(4096, ge=1)  # a job; beyond this, 413
    max_bytes: int = Field(256 * 2**20, ge=1)  # a job's request body, held in memory while it is read; beyond, 413
    body_seconds: float = Field(300.0, gt=0)  # within which the body must have arrived; beyond, 408
    store_bytes: int = Field(64 * 2**30, ge=1)  # pixels stored for all jobs; beyond this, 507
    keep_s: float = Field(7 * 86400.0, gt=0)  # from a job's end until it, its results and its images are removed

    chunk_items: int = Field(32, ge=1)  # what one task scores: also what is scored anew after a worker's death
    chunk_bytes: int = Field(24 * 2**20, ge=1)  # pixels of one task, unless a single image has more
    chunk_timeout_s: float = Field(120.0, gt=0)  # for one task at the gateway, its retries included
    lease_s: float = Field(300.0, gt=0)  # how long a task may be silent before another is sent in its place
    tries: int = Field(60, ge=1)  # in a row without one new score (up to 60 s apart), then errors stand
    max_claims: int = Field(5, ge=1)  # deaths of workers over one task before its items are given up
    queued_chunks: int = Field(64, ge=1)  # sent to the broker ahead of the workers
    sweep_s: float = Field(0.5, gt=0)  # how often the table is looked at for what is due
    worker_processes: int = Field(2, ge=1)  # of one `serve jobs-worker`; they wait for the network, not for a core

    @field_validator("folder")
    @classmethod
    def _beside_the_configuration(cls, folder: Path, info: ValidationInfo) -> Path:
        return Path((info.context or {}).get("base", "")) / folder

    @model_validator(mode="after")
    def _lease_outlives_the_task(self) -> Self:
        if self.lease_s <= self.chunk_timeout_s:
            raise ValueError(f"lease_s {self.lease_s:g} must exceed chunk_timeout_s {self.chunk_timeout_s:g}")
        return self

    @field_validator("broker")
    @classmethod
    def _known_broker(cls, broker: str | None) -> str | None:
        if broker is not None and not broker.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(f"a broker is a redis:// address, or absent for files, got {broker!r}")
        return broker

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.folder.resolve() / 'jobs.sqlite'}"
