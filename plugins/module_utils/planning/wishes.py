# SPDX-License-Identifier: Apache-2.0
"""The wishes: the host's variables that the plan reads, checked and given their defaults."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import BACKENDS, TIERS
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import (
    PlanError,
    Problems,
    choices_text,
    suggestion_text,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.workloads import DEFAULT_WORKLOAD, WORKLOADS

DEFAULT_MODELS_PATH = "/var/lib/inference-fleet/models"
DEFAULT_BACKENDS = ("llamacpp",)
#: The word in place of a list in inference_services that leaves the services to the recommendation.
AUTO = "auto"

#: A service's settings in inference_services, and for each backend the end of the variable that sets it for the whole
#: backend (vllm_max_model_len): the words that the engine's own users know.
SETTINGS: dict[str, dict[str, str]] = {
    "model": dict.fromkeys(BACKENDS, "model"),
    "models": {"ollama": "models"},
    "port": dict.fromkeys(BACKENDS, "port"),
    "context_length": {
        "llamacpp": "ctx_size",
        "ollama": "context_length",
        "sglang": "context_length",
        "vllm": "max_model_len",
    },
    "parallel": {"llamacpp": "parallel", "ollama": "num_parallel", "sglang": "parallel", "vllm": "parallel"},
    "kv_cache_type": {
        "llamacpp": "kv_cache_type",
        "ollama": "kv_cache_type",
        "sglang": "kv_cache_dtype",
        "vllm": "kv_cache_dtype",
    },
    "quantization": dict.fromkeys(BACKENDS, "quantization"),
    "gpus": dict.fromkeys(BACKENDS, "gpus"),
    "tensor_parallel_size": {"sglang": "tp_size", "vllm": "tensor_parallel_size"},
    "gpu_layers": {"llamacpp": "gpu_layers", "ollama": "gpu_layers"},
    "max_requests": {"sglang": "max_running_requests", "vllm": "max_num_seqs"},
    "max_batched_tokens": {"sglang": "chunked_prefill_size", "vllm": "max_num_batched_tokens"},
    "memory_share": {"sglang": "mem_fraction_static", "vllm": "gpu_memory_utilization"},
    "max_loaded_models": {"ollama": "max_loaded_models"},
}
SERVICE_KEYS = ("name", "backend", *SETTINGS)

#: Every variable of a host that the plan reads; ``host`` and ``ansible_host`` are given by the caller.
VARIABLES = (
    "inference_services",
    "inference_backends",
    "inference_workload",
    "inference_gated_models",
    "inference_address",
    "inference_image_registries",
    "inference_models_path",
    "inference_tier",
    *(f"{backend}_{names[backend]}" for names in SETTINGS.values() for backend in sorted(names)),
    *(f"{backend}_{what}" for backend in BACKENDS for what in ("extra_args", "env")),
)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*\Z")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_REGISTRY = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._/-]+)?\Z")
_SECRET_ENV = ("HF_TOKEN", "LLAMA_API_KEY")


@dataclass(frozen=True)
class ServiceWish:
    """What is wished of one service; None leaves the choice to the plan.

    ``context_length`` is in tokens a request, ``parallel`` the requests with a full context that must fit at the same
    time. vLLM and SGLang take more requests than that when they are shorter: ``max_requests`` at most.
    ``models`` are all that it serves, its own first; ``models_setting`` is the one that names them, ``model`` or
    ``models``. ``max_loaded_models`` of them are in memory at the same time, all of them by default.
    """

    name: str
    backend: str
    models: tuple[str, ...]
    models_setting: str
    listed: bool
    port: int | None
    default_port: int | None
    context_length: int | None
    parallel: int | None
    kv_cache_type: str | None
    quantization: str | None
    gpus: int | tuple[str | int, ...] | None
    tensor_parallel_size: int | None
    gpu_layers: int | str | None
    max_requests: int | None
    max_batched_tokens: int | None
    memory_share: float | None
    max_loaded_models: int | None
    extra_args: tuple[str, ...]
    extra_env: dict[str, str]

    @property
    def model(self) -> str:
        """The service's own model, which must answer before the service counts as started."""
        return self.models[0]

    def remedy(self, setting: str, value: object) -> str:
        """Return the words that set one setting of this service where its user would set it."""
        if self.listed:
            return f"set {setting}: {value} for that service in inference_services"
        return f"set {variable(self.backend, setting)}: {value}"

    def place(self, setting: str) -> str:
        """Return the words for where a setting of this service is set."""
        if self.listed:
            return f"{setting} of service {self.name}"
        return variable(self.backend, setting)


def variable(backend: str, setting: str) -> str:
    """Return the variable that sets a setting for all services of a backend."""
    return f"{backend}_{SETTINGS[setting][backend]}"


@dataclass(frozen=True)
class Wishes:
    """The checked wishes of one node.

    With ``auto`` there are no services yet: they are recommended for ``workload``, among ``backends`` (None for all),
    models whose licence must be accepted only with ``gated_models``. ``whole_backends`` holds by backend what its
    variables set for all of its services: ``context_length`` and ``parallel``.
    """

    host: str
    services: tuple[ServiceWish, ...]
    auto: bool
    workload: str
    gated_models: bool
    backends: tuple[str, ...] | None
    whole_backends: dict[str, dict[str, int]]
    address: str | None
    ansible_host: str | None
    registries: dict[str, str]
    models_path: str
    tier: str | None


def parse_wishes(raw: Mapping[str, Any], available: Sequence[str]) -> Wishes:
    """Check a host's variables and fill in their defaults.

    Args:
        raw: Variable names to values; ``host`` is the host's name, unknown names are not read.
        available: Backends that the catalog has images for.

    Raises:
        PlanError: Values have the wrong type or are impossible; one sentence for each of them.
    """
    return _Parser(raw, available).parse()


class _Parser:
    def __init__(self, raw: Mapping[str, Any], available: Sequence[str]) -> None:
        self._raw = raw
        self._available = available
        self._host = str(raw.get("host") or "this host")
        self._problems = Problems()

    def parse(self) -> Wishes:
        ansible_host = self._raw.get("ansible_host")
        auto = self._raw.get("inference_services") == AUTO
        wishes = Wishes(
            host=self._host,
            services=() if auto else self._problems.each(self._services) or (),
            auto=auto,
            workload=self._problems.each(self._workload) or DEFAULT_WORKLOAD,
            gated_models=self._problems.each(self._boolean, "inference_gated_models") or False,
            backends=self._problems.each(self._allowed_backends) if auto else None,
            whole_backends=self._whole_backends() if auto else {},
            address=self._problems.each(self._address),
            ansible_host=ansible_host if isinstance(ansible_host, str) else None,
            registries=self._problems.each(self._registries) or {},
            models_path=self._problems.each(self._models_path) or DEFAULT_MODELS_PATH,
            tier=self._problems.each(self._choice, "inference_tier", self._raw.get("inference_tier"), TIERS),
        )
        self._problems.tell()
        return wishes

    def _address(self) -> str | None:
        address = self._optional_text("inference_address")
        if address is not None and not is_address(address):
            self._wrong("inference_address", address, "an IP address of this node")
        return address

    def _services(self) -> tuple[ServiceWish, ...]:
        listed = self._raw.get("inference_services")
        if listed is None:
            entries: list[Mapping[str, Any]] = [{"backend": backend} for backend in self._backends()]
        else:
            if not isinstance(listed, list | tuple):
                right = f"a list of services, each with backend and model, or the word {AUTO}"
                self._wrong("inference_services", listed, right)
            entries = []
            for index, entry in enumerate(listed):
                if not isinstance(entry, Mapping):
                    self._wrong(f"inference_services[{index}]", entry, "a dictionary with backend and model")
                entries.append(entry)
        names = self._names(entries)
        pairs = zip(entries, names, strict=True)
        services = [self._problems.each(self._service, entry, name, listed is not None) for entry, name in pairs]
        return tuple(service for service in services if service is not None)

    def _workload(self) -> str:
        workload = self._optional_text("inference_workload") or DEFAULT_WORKLOAD
        if workload not in WORKLOADS:
            raise PlanError(
                f"{self._host}: inference_workload is {workload!r}, which is no workload; "
                + suggestion_text(workload, WORKLOADS, "known")
            )
        return workload

    def _allowed_backends(self) -> tuple[str, ...] | None:
        if self._raw.get("inference_backends") is None:
            return None
        entries = [{"backend": backend} for backend in self._backends()]
        if not entries:
            self._wrong("inference_backends", "[]", f"at least one of {choices_text(self._available)}, or leave it out")
        return tuple(self._backend(entry, "inference_backends") for entry in entries)

    def _whole_backends(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for backend in BACKENDS:
            for setting in ("context_length", "parallel"):
                where = variable(backend, setting)
                number = self._problems.each(self._integer, where, self._raw.get(where), 1)
                if number is not None:
                    found.setdefault(backend, {})[setting] = number
        return found

    def _backends(self) -> list[str]:
        value = self._raw.get("inference_backends")
        if value is None:
            return list(DEFAULT_BACKENDS)
        right = f"a list of backends, such as [{self._available[0] if self._available else 'llamacpp'}]"
        if not isinstance(value, list | tuple):
            self._wrong("inference_backends", value, right)
        backends = [
            str(item) if isinstance(item, str) else self._wrong("inference_backends", item, right) for item in value
        ]
        doubled = next((item for item in backends if backends.count(item) > 1), None)
        if doubled is not None:
            raise PlanError(
                f"{self._host}: inference_backends names {doubled} twice; list two services of one backend in "
                "inference_services"
            )
        return backends

    def _names(self, entries: Sequence[Mapping[str, Any]]) -> list[str]:
        """Name the services: as wished, else after the backend, the further ones of a backend numbered from 2."""
        listed = self._raw.get("inference_services") is not None
        backends = [
            self._backend(entry, f"backend of inference_services[{index}]" if listed else "inference_backends")
            for index, entry in enumerate(entries)
        ]
        wished: list[str | None] = []
        for index, entry in enumerate(entries):
            name = entry.get("name")
            if name is not None and not (isinstance(name, str) and _NAME.match(name)):
                self._wrong(
                    f"name of inference_services[{index}]",
                    name,
                    "lower-case letters, digits and hyphens, such as llamacpp-small",
                )
            if name is not None and name in wished:
                raise PlanError(f"{self._host}: inference_services names two services {name}; give each its own name")
            wished.append(None if name is None else str(name))
        taken = {name for name in wished if name is not None}
        names: list[str] = []
        for wish, backend in zip(wished, backends, strict=True):
            name, number = wish or backend, 1
            while wish is None and name in taken:
                number += 1
                name = f"{backend}-{number}"
            taken.add(name)
            names.append(name)
        return names

    def _backend(self, entry: Mapping[str, Any], where: str) -> str:
        backend = entry.get("backend")
        if not isinstance(backend, str):
            self._wrong(where, backend, f"one of {choices_text(self._available)}")
        if backend not in BACKENDS:
            raise PlanError(
                f"{self._host}: {where} is {backend!r}, which is no backend; "
                + suggestion_text(backend, self._available, "available")
            )
        if backend not in self._available:
            raise PlanError(
                f"{self._host}: {where} is {backend}, which is not available in this version; "
                f"available: {choices_text(self._available)}"
            )
        return str(backend)

    def _service(self, entry: Mapping[str, Any], name: str, listed: bool) -> ServiceWish:
        backend = str(entry["backend"])
        for key in entry:
            if key not in SERVICE_KEYS:
                raise PlanError(
                    f"{self._host}: service {name} in inference_services has the unknown key {key!r}; "
                    + suggestion_text(str(key), SERVICE_KEYS, "known")
                )

        each = self._problems.each

        def read(setting: str) -> tuple[str, Any]:
            if entry.get(setting) is not None:
                return f"{setting} of service {name} in inference_services", entry[setting]
            if backend not in SETTINGS[setting]:
                return "", None
            return variable(backend, setting), self._raw.get(variable(backend, setting))

        for setting, names in SETTINGS.items():
            if entry.get(setting) is not None and backend not in names:
                each(self._not_for, f"{setting} of service {name} in inference_services", backend, sorted(names))
        where = f"port of service {name} in inference_services"
        models_setting, models = each(self._models, entry, name, read) or ("model", ("",))
        return ServiceWish(
            name=name,
            backend=backend,
            models=models,
            models_setting=models_setting,
            listed=listed,
            port=each(self._integer, where, entry.get("port"), 1, 65535),
            default_port=each(self._integer, f"{backend}_port", self._raw.get(f"{backend}_port"), 1, 65535),
            context_length=each(self._integer, *read("context_length"), 1),
            parallel=each(self._integer, *read("parallel"), 1),
            kv_cache_type=each(self._text, *read("kv_cache_type"), "a type of KV cache"),
            quantization=each(self._text, *read("quantization"), "a format or quantization of the model"),
            gpus=each(self._gpus, *read("gpus")),
            tensor_parallel_size=each(self._integer, *read("tensor_parallel_size"), 1, 1024),
            gpu_layers=each(self._gpu_layers, *read("gpu_layers")),
            max_requests=each(self._integer, *read("max_requests"), 1),
            max_batched_tokens=each(self._integer, *read("max_batched_tokens"), 1),
            memory_share=each(self._share, *read("memory_share")),
            max_loaded_models=each(self._integer, *read("max_loaded_models"), 1),
            extra_args=each(self._arguments, f"{backend}_extra_args", self._raw.get(f"{backend}_extra_args")) or (),
            extra_env=each(self._environment, f"{backend}_env", self._raw.get(f"{backend}_env")) or {},
        )

    def _models(
        self, entry: Mapping[str, Any], name: str, read: Callable[[str], tuple[str, Any]]
    ) -> tuple[str, tuple[str, ...]]:
        """Return the setting that names the service's models, and the models; an entry's own come before variables."""
        given = {setting: read(setting) for setting in ("model", "models")}
        if any(entry.get(setting) is not None for setting in given):
            given = {setting: told for setting, told in given.items() if entry.get(setting) is not None}
        (where, value), (list_where, listed) = (given.get(setting, ("", None)) for setting in ("model", "models"))
        if value is not None and listed is not None:
            raise PlanError(f"{self._host}: {where} and {list_where} are both set; leave one of them out")
        if listed is not None:
            return "models", self._model_list(list_where, listed)
        if value is None:
            if self._raw.get("inference_services") is not None:
                where = f"model of service {name} in inference_services"
            raise PlanError(f"{self._host}: {where} is not set; give the name of a model in inference_models")
        if not isinstance(value, str):
            self._wrong(where, value, "the name of a model in inference_models")
        return "model", (str(value),)

    def _model_list(self, where: str, value: object) -> tuple[str, ...]:
        right = "a list of names of models in inference_models"
        if not isinstance(value, list | tuple) or not value:
            self._wrong(where, value, right)
        models = tuple(item if isinstance(item, str) else self._wrong(where, value, right) for item in value)
        doubled = next((item for item in models if models.count(item) > 1), None)
        if doubled is not None:
            raise PlanError(f"{self._host}: {where} names {doubled} twice; leave one of them out")
        return models

    def _not_for(self, where: str, backend: str, others: Sequence[str]) -> None:
        raise PlanError(
            f"{self._host}: {where} is no setting of {backend}; leave it out, it is one of {choices_text(others)}"
        )

    def _share(self, where: str, value: object) -> float | None:
        if value is None:
            return None
        right = "a number above 0 and below 1, the share of a GPU's memory"
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
        except ValueError:
            number = 0.0
        if not 0 < number < 1:
            self._wrong(where, value, right)
        return number

    def _arguments(self, where: str, value: object) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            self._wrong(where, value, "a list of arguments")
        for item in value:
            if isinstance(item, Mapping | list | tuple) or item is None or "\n" in str(item):
                self._wrong(where, value, "a list of arguments, each one line of text")
        return tuple(str(item) for item in value)

    def _registries(self) -> dict[str, str]:
        value = self._raw.get("inference_image_registries")
        right = "a dictionary of image registries, such as {ghcr.io: registry.example:5000}"
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._wrong("inference_image_registries", value, right)
        for registry, replacement in value.items():
            for item in (registry, replacement):
                if not isinstance(item, str) or not _REGISTRY.match(item):
                    self._wrong("inference_image_registries", {registry: replacement}, right)
        return {str(registry): str(replacement) for registry, replacement in value.items()}

    def _models_path(self) -> str:
        path = self._optional_text("inference_models_path") or DEFAULT_MODELS_PATH
        if not path.startswith("/"):
            self._wrong("inference_models_path", path, "an absolute path on the node")
        return path.rstrip("/")

    def _gpus(self, where: str, value: object) -> int | tuple[str | int, ...] | None:
        """Return a number of GPUs, or those that are named by index, UUID or PCI address."""
        right = "a number of GPUs, or a list of GPU indexes or UUIDs, such as [0]"
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if not isinstance(value, list | tuple) or not value:
            self._wrong(where, value, right)
        pinned: list[str | int] = []
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int | str):
                self._wrong(where, value, right)
            pinned.append(int(item) if isinstance(item, int) or item.isdigit() else str(item))
        if len(set(pinned)) < len(pinned):
            self._wrong(where, value, f"{right}, each of them once")
        return tuple(pinned)

    def _gpu_layers(self, where: str, value: object) -> int | str | None:
        if value is None or value == "all":
            return None if value is None else "all"
        return self._integer(where, value, 0, right="a number of layers, or all")

    def _environment(self, where: str, value: object) -> dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._wrong(where, value, "a dictionary of environment variables")
        environment = {}
        for name, item in value.items():
            if not isinstance(name, str) or not _ENV_NAME.match(name):
                raise PlanError(
                    f"{self._host}: {where} has the name {name!r}; give the name of an environment variable"
                )
            if name in _SECRET_ENV:
                raise PlanError(
                    f"{self._host}: {where} sets the secret {name}; leave it out, the gateway holds the keys and "
                    "models come from inference_models"
                )
            if isinstance(item, Mapping | list | tuple) or item is None or "\n" in str(item):
                raise PlanError(f"{self._host}: {name} in {where} is not text or a number; give one line of text")
            # llama.cpp, like most programs, reads true and false in lower case.
            environment[str(name)] = str(item).lower() if isinstance(item, bool) else str(item)
        return environment

    def _boolean(self, variable: str) -> bool:
        value = self._raw.get(variable)
        # A value given on the command line (-e name=true) arrives as text.
        if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no"):
            return value.lower() in ("true", "yes")
        if value is not None and not isinstance(value, bool):
            self._wrong(variable, value, "true or false")
        return bool(value)

    def _optional_text(self, variable: str) -> str | None:
        return self._text(variable, self._raw.get(variable), "a text")

    def _text(self, where: str, value: object, right: str) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            self._wrong(where, value, right)
        return str(value)

    def _choice(self, where: str, value: object, choices: Sequence[str]) -> str | None:
        if value is None:
            return None
        if value not in choices:
            self._wrong(where, value, f"one of {', '.join(choices)}")
        return str(value)

    def _integer(
        self, where: str, value: object, minimum: int, maximum: int | None = None, right: str | None = None
    ) -> int | None:
        if value is None:
            return None
        # A value given on the command line (-e name=4) arrives as text.
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        upper = f"a whole number from {minimum} to {maximum}"
        allowed = right or (f"a whole number of at least {minimum}" if maximum is None else upper)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(where, value, allowed)
        if value < minimum or (maximum is not None and value > maximum):
            self._wrong(where, value, allowed)
        return int(value)

    def _wrong(self, where: str, value: object, right: str) -> NoReturn:
        shown = "not set" if value is None else plain_text(value)
        raise PlanError(f"{self._host}: {where} is {shown}; give {right}")


def plain_text(value: object) -> str:
    """Return a wrong value as it is shown in an error, shortened."""
    shown = repr(str(value)) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def is_address(text: str) -> bool:
    """Tell whether the text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
