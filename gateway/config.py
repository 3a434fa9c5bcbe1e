"""What the gateway serves and how much it holds; one YAML file."""

import logging
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

logger = logging.getLogger(__name__)

Seconds = Annotated[float, Field(gt=0)]


def _service_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"a replica is an http:// or https:// address, got {url!r}")
    return url.rstrip("/")


ServiceUrl = Annotated[str, AfterValidator(_service_url)]


class RewardRoute(BaseModel):
    """One reward: where its replicas are and how its batches are formed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: list[ServiceUrl] = Field(min_length=1)
    max_batch: int = Field(16, ge=1)  # items sent to a replica at once; at most the service's batch_limit is useful
    max_delay_ms: float = Field(0.0, ge=0)  # how long the oldest item may wait for company though a replica is idle
    queue_items: int = Field(8192, ge=1)  # beyond this, 429
    queue_bytes: int = Field(2**30, ge=1)  # pixels held in memory for this reward; beyond this, 429
    batch_bytes: int = Field(24 * 2**20, ge=1)  # pixels in one batch; below the services' limit on a body
    inflight_batches: int = Field(2, ge=1)  # at one replica: one that runs and one that waits hides the network
    batch_timeout_s: Seconds = 120.0  # a replica silent for this long has failed the batch
    eject_after: int = Field(5, ge=1)  # failures in a row
    eject_s: Seconds = 1.0  # rest after the first ejection, doubled with each further one
    eject_max_s: Seconds = 60.0
    no_replica_grace_s: float = Field(2.0, ge=0)  # how long items wait for a replica to come back before no_replica

    @field_validator("replicas")
    @classmethod
    def _distinct(cls, replicas: list[str]) -> list[str]:
        if len(set(replicas)) < len(replicas):
            raise ValueError("the same replica is listed twice")
        return replicas


class PageConfig(BaseModel):
    """The page at `/`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    images: int = Field(24, ge=0, le=256)  # last scored images kept as small thumbnails; 0 keeps and shows none
    viewers: int = Field(16, ge=1)  # pages open at once


class GatewayConfig(BaseModel):
    """The gateway's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rewards: dict[str, RewardRoute] = Field(min_length=1)
    default_deadline_s: Seconds = 120.0  # for requests that name none
    max_deadline_s: Seconds = 600.0  # a longer one is cut to this
    probe_interval_s: Seconds = 0.5
    probe_timeout_s: Seconds = 2.0
    probe_misses: int = Field(
        3, ge=1
    )  # unanswered probes in a row until a replica counts as down; a refusal counts at once
    page: PageConfig = PageConfig()


def load_config(path: Path) -> GatewayConfig:
    """Reads and checks a YAML file. Raises ValueError naming the file and what is wrong in it."""
    try:
        return GatewayConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"gateway config {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"gateway config {path} is no YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ValueError(f"gateway config {path}: {faults}") from error


def futile_settings(config: GatewayConfig) -> list[str]:
    """Sentences on settings that can never have the effect they ask for."""
    warnings = []
    for name, route in config.rewards.items():
        if route.queue_items < route.max_batch:
            warnings.append(f"{name}: max_batch {route.max_batch} can never fill, queue_items is {route.queue_items}")
        if route.queue_bytes < route.batch_bytes:
            warnings.append(f"{name}: batch_bytes {route.batch_bytes} exceeds queue_bytes {route.queue_bytes}")
        if route.max_delay_ms and route.max_batch == 1:
            warnings.append(f"{name}: max_delay_ms {route.max_delay_ms} only delays, max_batch is 1")
        if route.max_delay_ms / 1000 >= config.default_deadline_s:
            warnings.append(f"{name}: max_delay_ms {route.max_delay_ms} reaches the default deadline")
    return warnings
