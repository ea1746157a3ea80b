# SPDX-License-Identifier: Apache-2.0
"""The catalog: models and engine images, read from ``inference_models`` and ``inference_engines`` and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, Tuple, Union

from ansible_collections.fleet.inference.plugins.module_utils.planning import images, versions
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import PlanError, suggestion_text

BACKENDS = ("llamacpp", "ollama", "sglang", "vllm")
TIERS = ("cpu", "cuda", "rocm", "vulkan")
#: The backends that this version plans; the engine table describes more.
PLANNED_BACKENDS = ("llamacpp", "ollama", "sglang", "vllm")
#: Formats of weights, best quality first. An MXFP4 file for llama.cpp is a GGUF file.
FORMATS = ("bf16", "fp16", "fp8", "int8", "nvfp4", "mxfp4", "awq", "gptq", "gguf")
#: The formats that a repository of safetensors may have.
SAFETENSORS_FORMATS = tuple(name for name in FORMATS if name != "gguf")
CAPABILITIES = ("chat", "code", "reasoning", "tools", "vision")
#: Bits a parameter that a repository of safetensors can have. Less is no known format; more is a mistyped size.
WEIGHT_BITS = (3, 40)
FEATURES = (
    "api_key",
    "continuous_batching",
    "cpu",
    "metrics",
    "model_switching",
    "multi_gpu",
    "pipeline_parallel",
    "prefix_caching",
    "streaming",
    "structured_output",
    "tensor_parallel",
)

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*\Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_CAPABILITY = re.compile(r"[0-9]+\.[0-9]\Z")
_GFX = re.compile(r"gfx[0-9a-f]{3,4}\Z")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*\Z")
_OLLAMA_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*:[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_KV_CACHE_TYPE = re.compile(r"[a-z][a-z0-9_]*\Z")
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
class Weights:
    """One repository of safetensors; ``size_bytes`` is the size of its weights."""

    format: str
    repository: str
    revision: str
    size_bytes: int


@dataclass(frozen=True)
class OllamaModel:
    """A model of the Ollama library."""

    tag: str
    size_bytes: int
    quantization: str


@dataclass(frozen=True)
class SlidingWindow:
    """All layers but ``full_attention_layers`` keep only the last ``window`` tokens."""

    window: int
    full_attention_layers: int


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention: a layer keeps ``kv_lora_rank + rope_head_dim`` values a token for all heads."""

    kv_lora_rank: int
    rope_head_dim: int


@dataclass(frozen=True)
class Model:
    """A model's architecture numbers and where its weights come from, best quality first.

    ``active_parameters`` are those that compute one token: fewer than ``parameters`` in a mixture of experts.
    ``attention_layers`` is the number of layers that keep keys and values of every token where the others (Mamba, gated
    delta rule) keep a small state of fixed size; None when all layers do.
    """

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
    active_parameters: int | None = None
    attention_layers: int | None = None
    sliding_window: SlidingWindow | None = None
    mla: LatentAttention | None = None
    licence: str | None = None
    gated: bool = False
    capabilities: tuple[str, ...] = ()
    safetensors: tuple[Weights, ...] = ()
    ollama: OllamaModel | None = None


#: What a GPU must have: a compute capability of at least this (CUDA), one of these gfx targets (ROCm), or nothing.
Requirement = Union[str, Tuple[str, ...], None]


@dataclass(frozen=True)
class Variant:
    """One image of an engine and what it needs from the node.

    ``architectures`` are the node's CPU architectures the image is built for, ``cpu_flags`` the instruction sets it
    needs; compute capabilities (CUDA) and ``gpu_architectures`` (gfx targets) say which GPUs it has code for.
    ``native_compute_capabilities`` have machine code in the image: for the others the driver compiles PTX and must
    know ``minimum_cuda_version``.

    ``formats`` are the formats of weights that it serves and what the GPU must have for each. Where
    ``native_formats`` asks for more, a GPU below that only stores the format and computes in 16 bits.
    ``kv_cache_types`` are the engine's own names of the types that its KV cache may have.
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
    cpu_flags: tuple[str, ...] = ()
    formats: Mapping[str, Requirement] = field(default_factory=dict)
    native_formats: Mapping[str, Requirement] = field(default_factory=dict)
    kv_cache_types: Mapping[str, Requirement] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """A backend's default port, the port inside its container, what it can do and its images, preferred first."""

    name: str
    port: int
    container_port: int
    variants: tuple[Variant, ...]
    features: tuple[str, ...] = ()
    minimum_version: str | None = None


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
        """Names of the backends that have images and that this version plans, sorted."""
        return [name for name in self.engine_names if name in PLANNED_BACKENDS]

    @property
    def engine_names(self) -> list[str]:
        """Names of all backends that have images, sorted."""
        return sorted(
            name
            for name, entry in self._engines.items()
            if name in BACKENDS and isinstance(entry, Mapping) and entry.get("variants")
        )

    def sound_engines(self) -> list[Engine]:
        """Return the engines whose entries are right, sorted: what advice is given from."""
        engines = []
        for name in self.engine_names:
            # A wrong entry is told to those who use it, not to those who are pointed at other engines.
            with suppress(PlanError):
                engines.append(self.engine(name))
        return engines

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
        weights = entry.get("safetensors") or []
        if not isinstance(weights, list | tuple):
            self._bad(at, "safetensors", weights, "a list of repositories, best quality first")
        return Model(
            name=name,
            gguf=tuple(self._model_file(item, f"{at}.gguf[{index}]") for index, item in enumerate(files)),
            active_parameters=self._at_most(entry, "active_parameters", numbers["parameters"], "parameters", at),
            attention_layers=self._at_most(entry, "attention_layers", numbers["layers"], "layers", at),
            sliding_window=self._sliding_window(entry, numbers, at),
            mla=self._latent_attention(entry, at),
            licence=self._optional(entry, "licence", at),
            gated=self._gated(entry, at),
            capabilities=self._model_capabilities(entry, at),
            safetensors=tuple(
                self._weights(item, numbers["parameters"], f"{at}.safetensors[{index}]")
                for index, item in enumerate(weights)
            ),
            ollama=self._ollama(entry, at),
            **numbers,
        )

    def _at_most(self, entry: Mapping[str, Any], key: str, limit: int, limit_key: str, at: str) -> int | None:
        if entry.get(key) is None:
            return None
        value = self._positive(entry, key, at)
        if value > limit:
            self._bad(at, key, value, f"at most {limit_key} {limit}")
        return value

    def _sliding_window(self, entry: Mapping[str, Any], numbers: Mapping[str, int], at: str) -> SlidingWindow | None:
        value = entry.get("sliding_window")
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._bad(at, "sliding_window", value, "a dictionary of window and full_attention_layers")
        where = f"{at}.sliding_window"
        window, context = self._positive(value, "window", where), numbers["context_length"]
        if window >= context:
            self._bad(where, "window", window, f"less than context_length {context}, or leave sliding_window out")
        full = value.get("full_attention_layers")
        if isinstance(full, bool) or not isinstance(full, int) or not 0 <= full <= numbers["layers"]:
            self._bad(where, "full_attention_layers", full, f"a whole number from 0 to layers {numbers['layers']}")
        return SlidingWindow(window, full)

    def _latent_attention(self, entry: Mapping[str, Any], at: str) -> LatentAttention | None:
        value = entry.get("mla")
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._bad(at, "mla", value, "a dictionary of kv_lora_rank and rope_head_dim")
        where = f"{at}.mla"
        return LatentAttention(
            self._positive(value, "kv_lora_rank", where), self._positive(value, "rope_head_dim", where)
        )

    def _gated(self, entry: Mapping[str, Any], at: str) -> bool:
        value = entry.get("gated", False)
        if not isinstance(value, bool):
            self._bad(at, "gated", value, "true or false")
        return value

    def _model_capabilities(self, entry: Mapping[str, Any], at: str) -> tuple[str, ...]:
        names = self._texts(entry, "capabilities", at)
        unknown = next((name for name in names if name not in CAPABILITIES), None)
        if unknown is not None:
            self._bad(at, "capabilities", unknown, f"some of {', '.join(CAPABILITIES)}")
        return names

    def _weights(self, entry: object, parameters: int, at: str) -> Weights:
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        kind = entry.get("format")
        if kind not in SAFETENSORS_FORMATS:
            self._bad(at, "format", kind, f"one of {', '.join(SAFETENSORS_FORMATS)}")
        size = self._positive(entry, "size_bytes", at)
        least, most = (parameters * bits // 8 for bits in WEIGHT_BITS)
        if not least <= size <= most:
            bits = f"{WEIGHT_BITS[0]} to {WEIGHT_BITS[1]} bits a parameter"
            self._bad(at, "size_bytes", size, f"{least} to {most} ({bits})")
        return Weights(
            format=str(kind),
            repository=self._matching(entry, "repository", _REPOSITORY, "a repository such as Qwen/Qwen3-8B", at),
            revision=self._matching(
                {"revision": "main", **entry}, "revision", _REVISION, "a commit, a tag or a branch", at
            ),
            size_bytes=size,
        )

    def _ollama(self, entry: Mapping[str, Any], at: str) -> OllamaModel | None:
        value = entry.get("ollama")
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._bad(at, "ollama", value, "a dictionary of tag, size_bytes and quantization")
        where = f"{at}.ollama"
        return OllamaModel(
            tag=self._matching(value, "tag", _OLLAMA_TAG, "a name and a tag such as qwen3:8b", where),
            size_bytes=self._positive(value, "size_bytes", where),
            quantization=self._text(value, "quantization", where),
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
        features = self._texts(entry, "features", at)
        unknown = next((item for item in features if item not in FEATURES), None)
        if unknown is not None:
            self._bad(at, "features", unknown, f"some of {', '.join(FEATURES)}")
        floor = self._optional(entry, "minimum_version", at)
        if floor is not None and versions.tag_version(floor) is None:
            self._bad(at, "minimum_version", floor, "a version such as '0.18.0', or a build such as b11669")
        return Engine(
            name=backend,
            port=self._positive(entry, "port", at),
            container_port=self._positive(entry, "container_port", at),
            features=features,
            minimum_version=floor,
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
        order = entry.get("order", 0)
        if isinstance(order, bool) or not isinstance(order, int):
            self._bad(at, "order", order, "a whole number, the lowest for the preferred image of a tier")
        tag, digest = self._image(entry, engine, at)
        return Variant(
            name=name,
            tier=str(tier),
            repository=self._text(entry, "repository", at),
            tag=tag,
            digest=digest,
            order=order,
            architectures=self._texts(entry, "architectures", at),
            gpu_architectures=self._texts(entry, "gpu_architectures", at, _GFX, "gfx targets, such as gfx942"),
            minimum_driver=self._version(entry, "minimum_driver", at, "a driver branch or version, such as '580'"),
            minimum_compute_capability=self._capability(entry, "minimum_compute_capability", at),
            excluded_compute_capabilities=self._capabilities(entry, "excluded_compute_capabilities", at),
            native_compute_capabilities=self._capabilities(entry, "native_compute_capabilities", at),
            minimum_cuda_version=self._version(entry, "minimum_cuda_version", at, "a CUDA version, such as '13.0'"),
            cpu_flags=self._texts(entry, "cpu_flags", at),
            formats=self._requirements(entry, "formats", str(tier), at),
            native_formats=self._requirements(entry, "native_formats", str(tier), at),
            kv_cache_types=self._requirements(entry, "kv_cache_types", str(tier), at),
        )

    def _image(self, entry: Mapping[str, Any], engine: Mapping[str, Any], at: str) -> tuple[str, str | None]:
        """Return a variant's tag and digest; a digest does not make a version right that its tag calls wrong."""
        digest = entry.get("digest")
        if digest is not None and not (isinstance(digest, str) and images.DIGEST.match(digest)):
            self._bad(at, "digest", digest, "null, or sha256: and 64 hexadecimal digits")
        tag = self._text(entry, "tag", at)
        if not images.TAG.match(tag):
            self._bad(at, "tag", tag, "an image tag")
        if versions.is_denied(tag, digest, self._texts(engine, "denied", at)):
            self._bad(at, "tag", tag, "a version that inference_engines does not deny")
        if digest is None and versions.tag_version(tag) is None:
            self._bad(at, "tag", tag, "a tag that names a version (this one moves), or the digest too")
        floor = self._optional(engine, "minimum_version", at)
        if floor is not None and versions.tag_version(tag) is not None and versions.is_below(tag, floor) is not False:
            self._bad(at, "tag", tag, f"version {floor} or newer")
        return tag, None if digest is None else str(digest)

    def _requirements(self, entry: Mapping[str, Any], key: str, tier: str, at: str) -> dict[str, Requirement]:
        value = entry.get(key) or {}
        if not isinstance(value, Mapping):
            self._bad(at, key, value, "a dictionary of names to what each needs")
        known = key == "kv_cache_types"
        for name in value:
            if not (_KV_CACHE_TYPE.match(str(name)) if known else name in FORMATS):
                self._bad(at, key, name, "the engine's own names" if known else f"some of {', '.join(FORMATS)}")
        return {str(name): self._requirement(value, str(name), tier, f"{key} of {at}") for name in value}

    def _requirement(self, entry: Mapping[str, Any], name: str, tier: str, at: str) -> Requirement:
        value = entry[name]
        if value is None:
            return None
        if tier == "cuda" and isinstance(value, str) and _CAPABILITY.match(value):
            return str(value)
        if tier == "rocm" and isinstance(value, list | tuple) and value:
            return self._texts(entry, name, at, _GFX, "gfx targets, such as gfx942")
        needs = {"cuda": ", or a compute capability such as '8.0'", "rocm": ", or a list of gfx targets"}
        return self._bad(at, name, value, f"null{needs.get(tier, '')}")

    def _capability(self, entry: Mapping[str, Any], key: str, at: str) -> str | None:
        value = self._optional(entry, key, at)
        if value is not None and not _CAPABILITY.match(value):
            self._bad(at, key, value, "a compute capability, such as '8.0'")
        return value

    def _capabilities(self, entry: Mapping[str, Any], key: str, at: str) -> tuple[str, ...]:
        return self._texts(entry, key, at, _CAPABILITY, "compute capabilities, such as '8.0'")

    def _version(self, entry: Mapping[str, Any], key: str, at: str, right: str) -> str | None:
        value = self._optional(entry, key, at)
        if value is not None and not versions.numbers(value):
            self._bad(at, key, value, right)
        return value

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

    def _matching(self, entry: Mapping[str, Any], key: str, pattern: re.Pattern[str], right: str, at: str) -> str:
        value = entry.get(key)
        if not isinstance(value, str) or not pattern.match(value):
            self._bad(at, key, value, right)
        return value

    def _optional(self, entry: Mapping[str, Any], key: str, at: str) -> str | None:
        return None if entry.get(key) is None else self._text(entry, key, at)

    def _texts(
        self, entry: Mapping[str, Any], key: str, at: str, shape: re.Pattern[str] | None = None, what: str = ""
    ) -> tuple[str, ...]:
        value = entry.get(key) or ()
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            self._bad(at, key, value, "a list of texts (quote numbers)")
        wrong = next((item for item in value if shape is not None and not shape.match(item)), None)
        if wrong is not None:
            self._bad(at, key, wrong, f"a list of {what}")
        return tuple(str(item) for item in value)

    def _bad(self, at: str, key: str, value: object, right: str) -> NoReturn:
        shown = "missing" if value is None else repr(value)
        raise PlanError(f"{self._host}: {key} of {at} is {shown}; give {right}")
