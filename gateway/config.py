"""What the gateway serves and how much it holds: one YAML file, and replicas by environment variable."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from gateway.jobs.config import JobsConfig

logger = logging.getLogger(__name__)

Seconds = Annotated[float, Field(gt=0)]


REPLICAS_VARIABLE = "REWARD_REPLICAS"
DNS_PREFIX = "dns+http://"
_SCHEMES = ("http://", "https://", DNS_PREFIX)


def _service_url(url: str) -> str:
    scheme = next((scheme for scheme in _SCHEMES if url.startswith(scheme)), None)
    if scheme is None or not urlsplit(url).hostname:
        raise ValueError(f"a replica is an http://, https:// or dns+http:// address, got {url!r}")
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}") from None
    return url.rstrip("/")


ServiceUrl = Annotated[str, AfterValidator(_service_url)]


class RewardRoute(BaseModel):
    """One reward: where its replicas are and how its batches are formed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Addresses of services. dns+http://NAME:PORT stands for all the addresses behind NAME, looked up again and again.
    replicas: list[ServiceUrl] = Field(min_length=1)
    max_batch: int = Field(16, ge=1)  # items sent to a replica at once; at most the service's batch_limit is useful
    # How long the oldest item may wait for company though a replica is idle. At 0 what waits leaves at once, spread
    # over all idle replicas; above, in batches as large as they come.
    max_delay_ms: float = Field(0.0, ge=0)
    queue_items: int = Field(8192, ge=1)  # beyond this, 429
    queue_bytes: int = Field(2**30, ge=1)  # pixels held in memory for this reward; beyond this, 429
    batch_bytes: int = Field(24 * 2**20, ge=1)  # pixels in one batch; below the services' limit on a body
    inflight_batches: int = Field(2, ge=1)  # at one replica: one that runs and one that waits hides the network
    batch_timeout_s: Seconds = 120.0  # a replica silent for this long has failed the batch
    eject_after: int = Field(5, ge=1)  # failures in a row
    eject_s: Seconds = 1.0  # rest after the first ejection, doubled with each further one
    eject_max_s: Seconds = 60.0
    no_replica_grace_s: float = Field(2.0, ge=0)  # how long items wait for a replica to come back before no_replica
    hedge: bool = False  # send a batch older than the 95th percentile of its size to a second replica as well
    hedge_extra: float = Field(0.05, ge=0, le=1)  # share of the items that may be sent twice
    share_equal: bool = True  # equal items under way at the same time are scored once
    cache_entries: int = Field(0, ge=0)  # scores kept by content and version; 0 keeps none
    cache_bytes: int = Field(64 * 2**20, ge=1)  # memory of the kept scores and their details

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
    probe_misses: int = Field(3, ge=1)  # silent probes in a row until a replica is down; a refusal counts at once
    resolve_interval_s: Seconds = 5.0  # between two look-ups of the names in dns+http:// addresses
    reload_interval_s: Seconds = 2.0  # between two looks at the file for changes of the replicas
    client_weights: dict[str, Annotated[float, Field(gt=0)]] = {}  # shares of a full queue by client name; others: 1
    drain_s: Seconds = 5.0  # after SIGTERM what is in flight may take this long; the rest is answered 503
    drain_notice_s: float = Field(1.0, ge=0)  # of these, how long clients on open connections are told 503
    page: PageConfig = PageConfig()
    jobs: JobsConfig | None = None  # durable jobs; without this section there are none


def load_config(path: Path | None, environment: Mapping[str, str] | None = None) -> GatewayConfig:
    """Reads and checks a YAML file, and replicas from the variable REWARD_REPLICAS, which win over the file's.

    The variable reads "geneval=http://a:8101,http://b:8101 ocr=dns+http://ocr:8102". One of the two must be there.
    Raises ValueError naming the file or the variable and what is wrong in it.
    """
    source = f"gateway config {path}" if path is not None else f"gateway without a config file, {REPLICAS_VARIABLE}"
    try:
        document = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, urls in _replicas_of(environment or {}).items():
            document = document if isinstance(document, dict) else {}
            document.setdefault("rewards", {}).setdefault(name, {})["replicas"] = urls
        base = Path.cwd() if path is None else path.parent
        return GatewayConfig.model_validate(document, context={"base": base})
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ValueError(f"{source}: {faults}") from error


def _replicas_of(environment: Mapping[str, str]) -> dict[str, list[str]]:
    replicas = {}
    for part in environment.get(REPLICAS_VARIABLE, "").split():
        name, equals, urls = part.partition("=")
        if not (name and equals):
            raise ValueError(f"{REPLICAS_VARIABLE}: {part!r} is not REWARD=URL,URL")
        replicas[name] = [url for url in urls.split(",") if url]
    return replicas


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
