# SPDX-License-Identifier: Apache-2.0
"""The catalog: models and engine images, read from ``inference_models`` and ``inference_engines`` and checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, NoReturn, Tuple, TypeVar, Union

from ansible_collections.fleet.inference.plugins.module_utils.planning import images, versions
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import (
    PlanError,
    Problems,
    suggestion_text,
)

T = TypeVar("T")

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
_FILE_KEYS = ("file", "size_bytes", "sha256", "source")
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
    """A model as GGUF: one file, or the ``parts`` that llama.cpp reads as one, which lie side by side.

    ``size_bytes`` is the size on disk of all of it. Of parts, ``file`` and ``source`` are the first one's, which names
    the others, and ``sha256`` is the checksum of their checksums: the first one often stays when the others change.
    """

    quantization: str
    file: str
    size_bytes: int
    sha256: str
    source: dict[str, Any]
    parts: tuple[ModelFile, ...] = ()


@dataclass(frozen=True)
class Weights:
    """One repository of safetensors; ``size_bytes`` is the size of its weights.

    ``files`` are patterns of the files that are wanted of it; none takes all but the weights for other programs.
    """

    format: str
    repository: str
    revision: str
    size_bytes: int
    files: tuple[str, ...] = ()


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
    delta rule) keep a small state of fixed size; None when all layers do. Without ``float16`` its values overflow in
    float16, so an engine that computes in 16 bits needs a GPU with bfloat16.
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
    float16: bool = True
    licence: str | None = None
    gated: bool = False
    capabilities: tuple[str, ...] = ()
    safetensors: tuple[Weights, ...] = ()
    ollama: OllamaModel | None = None


_MODEL_KEYS = tuple(item.name for item in fields(Model) if item.name != "name")

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
            PlanError: There is no such model, or its entry has missing, unknown or impossible values, all of them told.
        """
        if name not in self._models:
            raise PlanError(
                f"{self._host}: {where} is {name!r}, which is not in inference_models; "
                + suggestion_text(name, self.model_names, "known", "inference_models")
            )
        entry, at = self._models[name], f"inference_models[{name!r}]"
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        problems = Problems()
        problems.each(self._check_name, name, at)
        for key in entry:
            problems.each(self._check_key, str(key), at)
        read = {key: problems.each(self._positive, entry, key, at) for key in _NUMBERS}
        numbers = {key: value for key, value in read.items() if value is not None}
        problems.each(self._check_heads, numbers, at)
        values: dict[str, Any] = {
            "gguf": problems.each(
                self._list, entry, "gguf", "a list of files, best quality first", self._model_file, at
            ),
            "active_parameters": problems.each(self._at_most, entry, "active_parameters", "parameters", numbers, at),
            "attention_layers": problems.each(self._at_most, entry, "attention_layers", "layers", numbers, at),
            "sliding_window": problems.each(self._sliding_window, entry, numbers, at),
            "mla": problems.each(self._latent_attention, entry, at),
            "float16": problems.each(self._flag, entry, "float16", True, at),
            "licence": problems.each(self._optional, entry, "licence", at),
            "gated": problems.each(self._flag, entry, "gated", False, at),
            "capabilities": problems.each(self._model_capabilities, entry, at),
            "safetensors": problems.each(
                self._list,
                entry,
                "safetensors",
                "a list of repositories, best quality first",
                lambda item, where: self._weights(item, numbers.get("parameters"), where),
                at,
            ),
            "ollama": problems.each(self._ollama, entry, at),
        }
        problems.tell()
        return Model(name=name, **{**numbers, **values})

    def _check_name(self, name: str, at: str) -> None:
        if not _MODEL_NAME.match(name):
            self._bad(at, "name", name, "letters, digits and . _ : / -, beginning with a letter or digit")

    def _check_key(self, key: str, at: str) -> None:
        if key not in _MODEL_KEYS:
            suggestion = suggestion_text(key, _MODEL_KEYS, "known", "group_vars/all/models.yml")
            raise PlanError(f"{self._host}: {at} has the unknown key {key!r}; {suggestion}")

    def _check_heads(self, numbers: Mapping[str, int], at: str) -> None:
        heads, kv_heads = numbers.get("attention_heads"), numbers.get("kv_heads")
        if heads is not None and kv_heads is not None and heads % kv_heads:
            self._bad(at, "kv_heads", kv_heads, f"a divisor of attention_heads {heads}")

    def _list(
        self, entry: Mapping[str, Any], key: str, right: str, read: Callable[[object, str], T], at: str
    ) -> tuple[T, ...]:
        """Return what is read of each item of a list; the problems of all items are told at once."""
        value = entry.get(key) or []
        if not isinstance(value, list | tuple):
            self._bad(at, key, value, right)
        problems = Problems()
        found = [problems.each(read, item, f"{at}.{key}[{index}]") for index, item in enumerate(value)]
        problems.tell()
        return tuple(item for item in found if item is not None)

    @staticmethod
    def _build(make: Callable[..., T], **readers: Callable[[], Any]) -> T:
        """Return what is made of the values; all of them are read first, so that all problems are told at once."""
        problems = Problems()
        values = {name: problems.each(read) for name, read in readers.items()}
        problems.tell()
        return make(**values)

    def _at_most(
        self, entry: Mapping[str, Any], key: str, limit_key: str, numbers: Mapping[str, int], at: str
    ) -> int | None:
        if entry.get(key) is None:
            return None
        value, limit = self._positive(entry, key, at), numbers.get(limit_key)
        if limit is not None and value > limit:
            self._bad(at, key, value, f"at most {limit_key} {limit}")
        return value

    def _sliding_window(self, entry: Mapping[str, Any], numbers: Mapping[str, int], at: str) -> SlidingWindow | None:
        value = entry.get("sliding_window")
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._bad(at, "sliding_window", value, "a dictionary of window and full_attention_layers")
        where = f"{at}.sliding_window"
        return self._build(
            SlidingWindow,
            window=lambda: self._window(value, numbers.get("context_length"), where),
            full_attention_layers=lambda: self._full_attention_layers(value, numbers.get("layers"), where),
        )

    def _window(self, entry: Mapping[str, Any], context: int | None, at: str) -> int:
        window = self._positive(entry, "window", at)
        if context is not None and window >= context:
            self._bad(at, "window", window, f"less than context_length {context}, or leave sliding_window out")
        return window

    def _full_attention_layers(self, entry: Mapping[str, Any], layers: int | None, at: str) -> int:
        full = entry.get("full_attention_layers")
        if isinstance(full, bool) or not isinstance(full, int) or full < 0 or (layers is not None and full > layers):
            limit = "" if layers is None else f" to layers {layers}"
            self._bad(at, "full_attention_layers", full, f"a whole number from 0{limit}")
        return full

    def _latent_attention(self, entry: Mapping[str, Any], at: str) -> LatentAttention | None:
        value = entry.get("mla")
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._bad(at, "mla", value, "a dictionary of kv_lora_rank and rope_head_dim")
        where = f"{at}.mla"
        return self._build(
            LatentAttention,
            kv_lora_rank=lambda: self._positive(value, "kv_lora_rank", where),
            rope_head_dim=lambda: self._positive(value, "rope_head_dim", where),
        )

    def _flag(self, entry: Mapping[str, Any], key: str, default: bool, at: str) -> bool:
        value = entry.get(key, default)
        if not isinstance(value, bool):
            self._bad(at, key, value, "true or false")
        return value

    def _model_capabilities(self, entry: Mapping[str, Any], at: str) -> tuple[str, ...]:
        names = self._texts(entry, "capabilities", at)
        unknown = next((name for name in names if name not in CAPABILITIES), None)
        if unknown is not None:
            self._bad(at, "capabilities", unknown, f"some of {', '.join(CAPABILITIES)}")
        return names

    def _weights(self, entry: object, parameters: int | None, at: str) -> Weights:
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        revision = {"revision": "main", **entry}
        return self._build(
            Weights,
            format=lambda: self._weights_format(entry, at),
            repository=lambda: self._matching(
                entry, "repository", _REPOSITORY, "a repository such as Qwen/Qwen3-8B", at
            ),
            revision=lambda: self._matching(revision, "revision", _REVISION, "a commit, a tag or a branch", at),
            size_bytes=lambda: self._weights_size(entry, parameters, at),
            files=lambda: self._texts(entry, "files", at),
        )

    def _weights_format(self, entry: Mapping[str, Any], at: str) -> str:
        kind = entry.get("format")
        if kind not in SAFETENSORS_FORMATS:
            self._bad(at, "format", kind, f"one of {', '.join(SAFETENSORS_FORMATS)}")
        return str(kind)

    def _weights_size(self, entry: Mapping[str, Any], parameters: int | None, at: str) -> int:
        size = self._positive(entry, "size_bytes", at)
        if parameters is not None:
            least, most = (parameters * bits // 8 for bits in WEIGHT_BITS)
            if not least <= size <= most:
                bits = f"{WEIGHT_BITS[0]} to {WEIGHT_BITS[1]} bits a parameter"
                self._bad(at, "size_bytes", size, f"{least} to {most} ({bits})")
        return size

    def _ollama(self, entry: Mapping[str, Any], at: str) -> OllamaModel | None:
        value = entry.get("ollama")
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._bad(at, "ollama", value, "a dictionary of tag, size_bytes and quantization")
        where = f"{at}.ollama"
        return self._build(
            OllamaModel,
            tag=lambda: self._matching(value, "tag", _OLLAMA_TAG, "a name and a tag such as qwen3:8b", where),
            size_bytes=lambda: self._positive(value, "size_bytes", where),
            quantization=lambda: self._text(value, "quantization", where),
        )

    def _model_file(self, entry: object, at: str) -> ModelFile:
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        if entry.get("files") is None:
            return self._one_file(entry, at)
        beside = next((key for key in _FILE_KEYS if key in entry), None)
        if beside is not None:
            raise PlanError(
                f"{self._host}: {at} has files and {beside} beside them; give {beside} to each of the files"
            )
        return self._build(
            self._split_model,
            quantization=lambda: self._text(entry, "quantization", at),
            parts=lambda: self._parts(entry, at),
        )

    @staticmethod
    def _split_model(quantization: str, parts: tuple[ModelFile, ...]) -> ModelFile:
        checksums = "".join(part.sha256 for part in parts)
        return ModelFile(
            quantization=quantization,
            file=parts[0].file,
            size_bytes=sum(part.size_bytes for part in parts),
            sha256=hashlib.sha256(checksums.encode()).hexdigest(),
            source=parts[0].source,
            parts=tuple(replace(part, quantization=quantization) for part in parts),
        )

    def _parts(self, entry: Mapping[str, Any], at: str) -> tuple[ModelFile, ...]:
        """Return the files of a split model, whose names llama.cpp makes from the first one's."""
        right = "all parts in their order, name-00001-of-00003.gguf for the first of three"

        def part(item: object, where: str) -> ModelFile:
            # Only the whole has a quantization.
            return self._one_file({**item, "quantization": "-"} if isinstance(item, Mapping) else item, where)

        parts = self._list(entry, "files", right, part, at)
        names = [item.file for item in parts]
        count = f"{len(names):05d}"
        stem = names[0].removesuffix(f"-00001-of-{count}.gguf") if names else ""
        if len(names) < 2 or names != [f"{stem}-{n:05d}-of-{count}.gguf" for n in range(1, len(names) + 1)]:
            self._bad(at, "files", ", ".join(names) or "empty", right)
        return parts

    def _one_file(self, entry: object, at: str) -> ModelFile:
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        sha256, file = "the file's 64 lower-case hexadecimal digits", "a file name without a directory"
        return self._build(
            ModelFile,
            quantization=lambda: self._text(entry, "quantization", at),
            file=lambda: self._matching(entry, "file", _FILE_NAME, file, at),
            size_bytes=lambda: self._positive(entry, "size_bytes", at),
            sha256=lambda: self._matching(entry, "sha256", _SHA256, sha256, at),
            source=lambda: self._source(entry.get("source"), at),
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
            where = f"{at}.source.package"
            return {
                kind: self._build(
                    dict,
                    name=lambda: self._text(value, "name", where),
                    version=lambda: self._text(value, "version", where),
                    member=lambda: self._text(value, "member", where),
                )
            }
        if not isinstance(value, str) or not value.startswith(("https://", "http://") if kind == "url" else "/"):
            self._bad(at, f"source.{kind}", value, _SOURCES[kind])
        return {kind: str(value)}

    def engine(self, backend: str) -> Engine:
        """Return a backend's engine entry.

        Raises:
            PlanError: The entry has missing or impossible values, all of them told.
        """
        entry, at = self._engines[backend], f"inference_engines.{backend}"
        problems = Problems()
        floor = problems.each(self._minimum_version, entry, at)
        denied = problems.each(self._texts, entry, "denied", at) or ()
        values: dict[str, Any] = {
            "port": problems.each(self._positive, entry, "port", at),
            "container_port": problems.each(self._positive, entry, "container_port", at),
            "features": problems.each(self._features, entry, at),
            "variants": problems.each(self._variants, entry, floor, denied, at),
        }
        problems.tell()
        return Engine(name=backend, minimum_version=floor, **values)

    def _minimum_version(self, entry: Mapping[str, Any], at: str) -> str | None:
        floor = self._optional(entry, "minimum_version", at)
        if floor is not None and versions.tag_version(floor) is None:
            self._bad(at, "minimum_version", floor, "a version such as '0.18.0', or a build such as b11669")
        return floor

    def _features(self, entry: Mapping[str, Any], at: str) -> tuple[str, ...]:
        features = self._texts(entry, "features", at)
        unknown = next((item for item in features if item not in FEATURES), None)
        if unknown is not None:
            self._bad(at, "features", unknown, f"some of {', '.join(FEATURES)}")
        return features

    def _variants(
        self, entry: Mapping[str, Any], floor: str | None, denied: tuple[str, ...], at: str
    ) -> tuple[Variant, ...]:
        variants = entry["variants"]
        if not isinstance(variants, Mapping):
            self._bad(at, "variants", variants, "a dictionary of names to images")
        problems = Problems()
        found = [
            problems.each(self._variant, str(name), item, floor, denied, f"{at}.variants.{name}")
            for name, item in variants.items()
        ]
        problems.tell()
        sound = (variant for variant in found if variant is not None)
        return tuple(sorted(sound, key=lambda variant: (variant.order, variant.name)))

    def _variant(self, name: str, entry: object, floor: str | None, denied: tuple[str, ...], at: str) -> Variant:
        if not isinstance(entry, Mapping):
            self._bad(at, "entry", entry, "a dictionary")
        tier = str(entry.get("tier", name))
        if tier not in TIERS:
            self._bad(at, "tier", tier, f"one of {', '.join(TIERS)}")
        driver, cuda = "a driver branch or version, such as '580'", "a CUDA version, such as '13.0'"
        return self._build(
            Variant,
            name=lambda: name,
            tier=lambda: tier,
            repository=lambda: self._text(entry, "repository", at),
            tag=lambda: self._tag(entry, floor, denied, at),
            digest=lambda: self._digest(entry, at),
            order=lambda: self._order(entry, at),
            architectures=lambda: self._texts(entry, "architectures", at),
            gpu_architectures=lambda: self._texts(entry, "gpu_architectures", at, _GFX, "gfx targets, such as gfx942"),
            minimum_driver=lambda: self._version(entry, "minimum_driver", at, driver),
            minimum_compute_capability=lambda: self._capability(entry, "minimum_compute_capability", at),
            excluded_compute_capabilities=lambda: self._capabilities(entry, "excluded_compute_capabilities", at),
            native_compute_capabilities=lambda: self._capabilities(entry, "native_compute_capabilities", at),
            minimum_cuda_version=lambda: self._version(entry, "minimum_cuda_version", at, cuda),
            cpu_flags=lambda: self._texts(entry, "cpu_flags", at),
            formats=lambda: self._requirements(entry, "formats", tier, at),
            native_formats=lambda: self._requirements(entry, "native_formats", tier, at),
            kv_cache_types=lambda: self._requirements(entry, "kv_cache_types", tier, at),
        )

    def _order(self, entry: Mapping[str, Any], at: str) -> int:
        order = entry.get("order", 0)
        if isinstance(order, bool) or not isinstance(order, int):
            self._bad(at, "order", order, "a whole number, the lowest for the preferred image of a tier")
        return order

    def _digest(self, entry: Mapping[str, Any], at: str) -> str | None:
        digest = entry.get("digest")
        if digest is not None and not (isinstance(digest, str) and images.DIGEST.match(digest)):
            self._bad(at, "digest", digest, "null, or sha256: and 64 hexadecimal digits")
        return digest

    def _tag(self, entry: Mapping[str, Any], floor: str | None, denied: tuple[str, ...], at: str) -> str:
        """Return a variant's tag; a digest does not make a version right that its tag calls wrong."""
        tag, digest = self._text(entry, "tag", at), entry.get("digest")
        if not images.TAG.match(tag):
            self._bad(at, "tag", tag, "an image tag")
        if versions.is_denied(tag, digest if isinstance(digest, str) else None, denied):
            self._bad(at, "tag", tag, "a version that inference_engines does not deny")
        if digest is None and versions.tag_version(tag) is None:
            self._bad(at, "tag", tag, "a tag that names a version (this one moves), or the digest too")
        if floor is not None and versions.tag_version(tag) is not None and versions.is_below(tag, floor) is not False:
            self._bad(at, "tag", tag, f"version {floor} or newer")
        return tag

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
