# SPDX-License-Identifier: Apache-2.0
"""The catalog: models and engine images, read from ``inference_models`` and ``inference_engines`` and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ansible_collections.fleet.inference.plugins.module_utils.planning import images
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import PlanError, suggestion_text

BACKENDS = ("llamacpp", "ollama", "sglang", "vllm")
TIERS = ("cpu", "cuda", "rocm", "vulkan")

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SOURCES = {"url": "https://…", "file": "/path/on/the/controller", "package": "{name, version, member}"}
_NUMBERS = (
    "parameters",
    "layers",
    "attention_heads",
    "kv_heads",
    "head_dim",
    "hidden_size",
    "vocabulary_size",
    "context_length",
)


@dataclass(frozen=True)
class ModelFile:
    """One GGUF file of a model; ``size_bytes`` is its size on disk."""

    quantization: str
    file: str
    size_bytes: int
    sha256: str
    source: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A model's architecture numbers and its GGUF files, best quality first."""

    name: str
    parameters: int
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocabulary_size: int
    context_length: int
    gguf: tuple[ModelFile, ...]


@dataclass(frozen=True)
class Variant:
    """One image of an engine and what it needs from the node.

    ``architectures`` are the node's CPU architectures the image is built for; compute capabilities (CUDA) and
    ``gpu_architectures`` (gfx targets) say which GPUs it has code for. ``native_compute_capabilities`` have machine
    code in the image: for the others the driver compiles PTX and must know ``minimum_cuda_version``.
    """

    name: str
    tier: str
    repository: str
    tag: str
    digest: str | None
    order: int
    architectures: tuple[str, ...]
    gpu_architectures: tuple[str, ...]
    minimum_driver: str | None
    minimum_compute_capability: str | None
    excluded_compute_capabilities: tuple[str, ...]
    native_compute_capabilities: tuple[str, ...]
    minimum_cuda_version: str | None


@dataclass(frozen=True)
class Engine:
    """A backend's default port, the port inside its container and its images."""

    name: str
    port: int
    container_port: int
    variants: tuple[Variant, ...]


class Catalog:
    """The catalog of one node's plan; entries are checked when used, so that a bad one stops only its users."""

    def __init__(self, host: str, catalog: Mapping[str, Any]) -> None:
        self._host = host
        self._models = self._mapping("inference_models", catalog.get("models"))
        self._engines = self._mapping("inference_engines", catalog.get("engines"))

    def _mapping(self, variable: str, value: object) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise PlanError(f"{self._host}: {variable} is not set; give a dictionary of names to entries")
        return value

    @property
    def backends(self) -> list[str]:
        """Names of the backends that have images, sorted."""
        return sorted(
            name
            for name, entry in self._engines.items()
            if name in BACKENDS and isinstance(entry, Mapping) and entry.get("variants")
        )

    @property
    def model_names(self) -> list[str]:
        """Public names of all models, sorted."""
        return sorted(str(name) for name in self._models)

    def model(self, name: str, where: str) -> Model:
        """Return a model by its public name.

        Args:
            name: Public name.
            where: Words for the place that names it, such as ``model of service llamacpp``.

        Raises:
            PlanError: There is no such model, or its entry has missing or impossible values.
        """
        if name not in self._models:
            raise PlanError(
                f"{self._host}: {where} is {name!r}, which is not in inference_models; "
                + suggestion_text(name, self.model_names, "known")
            )
        entry, at = self._models[name], f"inference_models[{name!r}]"
        if not _MODEL_NAME.match(name):
            self._bad(at, "name", name, "letters, digits and . _ : / -, beginning with a letter or digit")
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        numbers = {key: self._positive(entry, key, at) for key in _NUMBERS}
        if numbers["attention_heads"] % numbers["kv_heads"]:
            self._bad(at, "kv_heads", numbers["kv_heads"], f"a divisor of attention_heads {numbers['attention_heads']}")
        files = entry.get("gguf") or []
        if not isinstance(files, list | tuple):
            self._bad(at, "gguf", files, "a list of files, best quality first")
        return Model(
            name=name,
            gguf=tuple(self._model_file(item, f"{at}.gguf[{index}]") for index, item in enumerate(files)),
            **numbers,
        )

    def _model_file(self, entry: object, at: str) -> ModelFile:
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        sha256 = entry.get("sha256")
        if not isinstance(sha256, str) or not _SHA256.match(sha256):
            self._bad(at, "sha256", sha256, "the file's 64 lower-case hexadecimal digits")
        file = entry.get("file")
        if not isinstance(file, str) or not _FILE_NAME.match(file):
            self._bad(at, "file", file, "a file name without a directory")
        return ModelFile(
            quantization=self._text(entry, "quantization", at),
            file=file,
            size_bytes=self._positive(entry, "size_bytes", at),
            sha256=sha256,
            source=self._source(entry.get("source"), at),
        )

    def _source(self, source: object, at: str) -> dict[str, Any]:
        kinds = " or ".join(f"{kind}: {example}" for kind, example in _SOURCES.items())
        if not isinstance(source, Mapping) or len(source) != 1 or next(iter(source)) not in _SOURCES:
            self._bad(at, "source", source, f"one of {kinds}")
        kind = str(next(iter(source)))
        value = source[kind]
        if kind == "package":
            if not isinstance(value, Mapping):
                self._bad(at, "source.package", value, "a dictionary of name, version and member")
            return {
                kind: {key: self._text(value, key, f"{at}.source.package") for key in ("name", "version", "member")}
            }
        if not isinstance(value, str) or not value.startswith(("https://", "http://") if kind == "url" else "/"):
            self._bad(at, f"source.{kind}", value, _SOURCES[kind])
        return {kind: str(value)}

    def engine(self, backend: str) -> Engine:
        """Return a backend's engine entry.

        Raises:
            PlanError: The entry has missing or impossible values.
        """
        entry, at = self._engines[backend], f"inference_engines.{backend}"
        variants = entry["variants"]
        if not isinstance(variants, Mapping):
            self._bad(at, "variants", variants, "a dictionary of names to images")
        return Engine(
            name=backend,
            port=self._positive(entry, "port", at),
            container_port=self._positive(entry, "container_port", at),
            variants=tuple(
                sorted(
                    (self._variant(str(name), item, entry, f"{at}.variants.{name}") for name, item in variants.items()),
                    key=lambda variant: (variant.order, variant.name),
                )
            ),
        )

    def _variant(self, name: str, entry: object, engine: Mapping[str, Any], at: str) -> Variant:
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        tier = entry.get("tier", name)
        if tier not in TIERS:
            self._bad(at, "tier", tier, f"one of {', '.join(TIERS)}")
        digest = entry.get("digest")
        if digest is not None and not (isinstance(digest, str) and images.DIGEST.match(digest)):
            self._bad(at, "digest", digest, "null, or sha256: and 64 hexadecimal digits")
        tag = self._text(entry, "tag", at)
        if not images.TAG.match(tag):
            self._bad(at, "tag", tag, "an image tag")
        if images.is_denied(tag, self._texts(engine, "denied", at)):
            self._bad(at, "tag", tag, "a version that inference_engines does not deny")
        return Variant(
            name=name,
            tier=str(tier),
            repository=self._text(entry, "repository", at),
            tag=tag,
            digest=None if digest is None else str(digest),
            order=int(entry.get("order", 0)),
            architectures=self._texts(entry, "architectures", at),
            gpu_architectures=self._texts(entry, "gpu_architectures", at),
            minimum_driver=self._optional(entry, "minimum_driver", at),
            minimum_compute_capability=self._optional(entry, "minimum_compute_capability", at),
            excluded_compute_capabilities=self._texts(entry, "excluded_compute_capabilities", at),
            native_compute_capabilities=self._texts(entry, "native_compute_capabilities", at),
            minimum_cuda_version=self._optional(entry, "minimum_cuda_version", at),
        )

    def _positive(self, entry: Mapping[str, Any], key: str, at: str) -> int:
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._bad(at, key, value, "a whole number of at least 1")
        return value

    def _text(self, entry: Mapping[str, Any], key: str, at: str) -> str:
        value = entry.get(key)
        if not isinstance(value, str) or not value:
            self._bad(at, key, value, "a text")
        return value

    def _optional(self, entry: Mapping[str, Any], key: str, at: str) -> str | None:
        return None if entry.get(key) is None else self._text(entry, key, at)

    def _texts(self, entry: Mapping[str, Any], key: str, at: str) -> tuple[str, ...]:
        value = entry.get(key) or ()
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self._bad(at, key, value, "a list of texts (quote numbers)")
        return tuple(str(item) for item in value)

    def _bad(self, at: str, key: str, value: object, right: str) -> NoReturn:
        shown = "missing" if value is None else repr(value)
        raise PlanError(f"{self._host}: {key} of {at} is {shown}; give {right}")
