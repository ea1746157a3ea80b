# SPDX-License-Identifier: Apache-2.0
"""The words of the plan: units that engines run on, artifacts, settings, and what each takes. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import (
    Engine,
    Model,
    ModelFile,
    OllamaModel,
    Variant,
    Weights,
)

#: Share of a unit's memory that all services on it may take together; the rest is for the driver and fragmentation.
UNIT_SHARE = 0.92
#: Share of a node's memory that all services may take together; the rest is for the system and the page cache.
HOST_SHARE = 0.8
#: Tokens of a request that is typical of a chat, prompt and answer: what the number of short requests is told for.
SHORT_REQUEST = 4096


@dataclass(frozen=True)
class Unit:
    """What one process of an engine runs on: a whole GPU, a MIG instance, or a partition of an AMD card.

    ``identity`` is its UUID, else its PCI address, with ``#n`` for a partition. ``memory_bytes`` is its own memory, for
    compute instances that share a MIG instance's memory their part of it; None with ``unified`` memory, which is the
    host's. ``domain`` numbers the link domain and ``link`` is its type (``nvlink``, ``xgmi``, ``pcie``); None for what
    is no whole GPU. ``device`` and ``instance`` are the records of the facts.
    """

    identity: str
    kind: str
    title: str
    index: int | None
    vendor: str
    architecture: str | None
    memory_bytes: int | None
    unified: bool
    numa_node: int | None
    domain: int | None
    link: str | None
    device: Mapping[str, Any] = field(hash=False, compare=False)
    instance: Mapping[str, Any] | None = field(default=None, hash=False, compare=False)

    @property
    def budget(self) -> int:
        """Bytes that all services on the unit may take together; 0 with unified memory, whose budget is the host's."""
        return int((self.memory_bytes or 0) * UNIT_SHARE)


@dataclass(frozen=True)
class Artifact:
    """One form of a model that a backend loads. ``name`` is its quantization or format as users write it."""

    format: str
    name: str
    size_bytes: int
    source: ModelFile | Weights | OllamaModel


@dataclass(frozen=True)
class Setting:
    """One way to run a model.

    ``context_length`` is what one request may use, in tokens; ``parallel`` how many requests with a full context the
    memory holds at the same time.
    """

    artifact: Artifact
    context_length: int
    parallel: int


@dataclass(frozen=True)
class Demand:
    """What a setting takes of each of its units, and once of the host beside them (of the host alone on a CPU).

    ``shared_memory`` is the most that the container's /dev/shm may take. What an engine uses of it is part of the
    host's bytes, or of the overhead on a CPU; so it counts for the container's limit and not for the node's memory.
    """

    weights: int
    kv_cache: int
    overhead: int
    host: int = 0
    shared_memory: int = 0

    @property
    def total(self) -> int:
        """Bytes of one unit, or of the host on a CPU."""
        return self.weights + self.kv_cache + self.overhead


@dataclass(frozen=True)
class Request:
    """A service to be sized: what is wished of it, None where the plan chooses, and what it may be made of.

    ``artifacts`` are those that run on the units, best quality first. ``units`` is the number of units the demand is
    spread over, 0 on a CPU. ``options`` are the backend's own wishes (``gpu_layers``, ``gpu_memory_utilization`` …).
    """

    service: str
    model: Model
    artifacts: tuple[Artifact, ...]
    units: int
    context_length: int | None = None
    parallel: int | None = None
    kv_cache_type: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Share:
    """What a placed service may take of its units, and what else is on them.

    ``bytes`` of each unit (of the host on a CPU), ``unit_bytes`` its whole memory, ``taken_before`` what services that
    start earlier hold of it, ``alone`` when no other service is on any of the units.
    """

    bytes: int
    unit_bytes: int
    taken_before: int
    alone: bool


@dataclass(frozen=True)
class Concurrency:
    """How many requests a service answers at the same time.

    ``requests`` with a full context each; ``short_requests`` of ``SHORT_REQUEST`` tokens, None where every request has
    a slot of fixed size or where a context is no longer than that. ``kv_cache_tokens`` is what the KV cache holds.
    """

    requests: int
    short_requests: int | None
    kv_cache_tokens: int


@dataclass(frozen=True)
class Launch:
    """How the engine is started with a setting: arguments behind the image's entry point, and environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    shared_memory_bytes: int
    memory_limit_bytes: int
    readiness_timeout_seconds: int
    decisions: tuple[str, ...]


@dataclass(frozen=True)
class Situation:
    """Everything that starting a service depends on beside its request and setting."""

    engine: Engine
    variant: Variant
    tier: str
    units: tuple[Unit, ...]
    share: Share
    served_name: str
    threads: int | None
    prompt_cache_bytes: int
    extra_arguments: tuple[str, ...]
    extra_environment: Mapping[str, str]
    host: str


class Backend(Protocol):
    """What the plan asks of a backend. Every function is pure."""

    name: str
    #: Names of KV cache types as users write them, the default first.
    kv_cache_types: tuple[str, ...]

    def artifacts(self, model: Model) -> tuple[Artifact, ...]:
        """Return the forms of a model that this backend can load at all, best quality first."""

    def unit_counts(self, model: Model, most: int) -> tuple[int, ...]:
        """Return over how many units a model can be spread, ascending, none above ``most``."""

    def demand(self, request: Request, setting: Setting) -> Demand:
        """Estimate what a setting takes."""

    def settings(self, request: Request) -> Iterator[Setting]:
        """Yield the settings to choose from, each taking at least as much memory as the one before it."""

    def concurrency(self, request: Request, setting: Setting, share: Share) -> Concurrency:
        """Return how many requests a setting answers at the same time with what it may take of its units."""

    def launch(self, request: Request, setting: Setting, situation: Situation) -> Launch:
        """Return how the engine is started; raises PlanError for extra arguments that would undo the plan."""
