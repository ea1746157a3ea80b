# SPDX-License-Identifier: Apache-2.0
"""A model's numbers from its own files: a catalog entry from a GGUF header or from a config.json of Hugging Face.

Runs on the controller. Only the header of a GGUF file is parsed; its checksum reads the whole file once. Of a split
model all parts are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_QUANTIZATION = re.compile(r"(?:^|[.-])((?:I?Q\d\w*|MXFP4|BF16|F16|F32))\.gguf\Z", re.IGNORECASE)
_FIRST_PART = re.compile(r"-00001-of-\d{5}(?=\.gguf\Z)")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
#: Tensors that are computed, not learned.
_COMPUTED_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_EXPERTS = re.compile(r"blk\.\d+\.ffn_\w+_exps\.")
_BLOCK = re.compile(r"blk\.(\d+)\.")
#: Every which layer has full attention where the file gives only the window (llama.cpp, set_swa_pattern).
_GGUF_PATTERN = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}
_CONFIG_PATTERN = {"gemma2": 2, "gemma3_text": 6}

#: Kinds whose values overflow in float16 (vLLM, vllm/config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS).
_OVERFLOWING = ("gemma2", "gemma3", "gemma3_text", "glm4", "plamo2")

#: What Gemma 3 leaves out of its config.json (transformers, Gemma3TextConfig).
_GEMMA3 = {
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 262208,
}
#: Architectures whose parameters can be counted from the config.json.
_DENSE = ("gemma3_text", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3")
_EXPERT_MODELS = ("deepseek_v2", "deepseek_v3", "gpt_oss", "kimi_k2", "mixtral", "qwen3_moe")
COUNTED = tuple(sorted((*_DENSE, *_EXPERT_MODELS)))
#: Output and input embeddings are one matrix unless the config.json says otherwise.
_TIED = ("gemma3_text", "smollm3")


class InspectError(ValueError):
    """A file gives no catalog entry; the text is one sentence: the path, what is wrong, what would be right."""


def inspect_model(path: str | Path) -> dict[str, dict[str, Any]]:
    """Return ``{name: entry}`` of the model catalog; the name is a suggestion made from the file's.

    Args:
        path: A GGUF file, a ``config.json``, or a folder that holds one.

    Raises:
        InspectError: There is no such file, it is of another kind, or it lacks numbers.
    """
    path = Path(path).expanduser()
    try:
        config = path / "config.json" if path.is_dir() else path
        if path.is_dir() and not config.is_file():
            raise InspectError(f"{path} holds no config.json; give a GGUF file or a folder of a Hugging Face model")
        if not config.is_file():
            raise InspectError(f"{path} does not exist; give a GGUF file, a config.json or a folder that holds one")
        if config.suffix == ".json":
            return {_name(config.absolute().parent.name): _from_config(config)}
        with config.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise InspectError(
                    f"{path} is no GGUF file; give a GGUF file, a config.json or a folder that holds one"
                )
        if not _FILE_NAME.match(path.name):
            raise InspectError(f"{path} can not be in the catalog; rename it with letters, digits and . _ - only")
        entry = _from_gguf(config)
        stem = _whole_name(path).removesuffix(".gguf")
        stem = re.sub(rf"[.-]{re.escape(entry['gguf'][0]['quantization'])}\Z", "", stem, flags=re.IGNORECASE)
        return {_name(stem): entry}
    except OSError as error:
        raise InspectError(f"{path} can not be read ({error.strerror}); give a file that you may read") from error


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "model"


def _whole(value: object) -> int | None:
    """Return a positive whole number, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _entry(path: Path, numbers: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry in the catalog's order; every one of the numbers must be there."""
    latent = extra.get("mla") or {}
    missing = [key for key, value in {**numbers, **latent}.items() if _whole(value) is None]
    if missing:
        raise InspectError(f"{path} gives no {', '.join(missing)}; write the entry by hand from the model's card")
    if numbers["attention_heads"] % numbers["kv_heads"]:
        raise InspectError(
            f"{path} gives kv_heads {numbers['kv_heads']}, which does not divide attention_heads "
            f"{numbers['attention_heads']}; get the file anew"
        )
    merged = {**numbers, **{key: value for key, value in extra.items() if value is not None}}
    order = ("parameters", "active_parameters", *list(numbers)[1:], "attention_layers", "sliding_window", "mla")
    return {key: merged[key] for key in (*order, "float16", "licence", "gguf") if key in merged}


def _sliding_window(window: object, full_attention_layers: int, context: object) -> dict[str, int] | None:
    """Return the catalog's key, None where the window is no shorter than the context."""
    length, limit = _whole(window), _whole(context)
    if length is None or limit is None or length >= limit:
        return None
    return {"window": length, "full_attention_layers": full_attention_layers}


# --- GGUF ---


def _from_gguf(path: Path) -> dict[str, Any]:
    fields, tensors = _read_gguf(path)
    arch = fields.get("general.architecture")
    if arch == "clip" or fields.get("general.type") == "mmproj":
        raise InspectError(f"{path} holds a vision encoder only; give the file of the model itself")
    parts = _parts(path, _whole(fields.get("split.count")) or 1)
    for part in parts[1:]:
        tensors += _read_gguf(part)[1]

    def number(key: str) -> Any:
        return fields.get(f"{arch}.{key}")

    mtp = _whole(number("nextn_predict_layers")) or 0
    blocks = _whole(number("block_count"))
    layers = None if blocks is None else blocks - mtp
    per_layer = number("attention.head_count_kv")
    heads, kv_heads = _largest(number("attention.head_count")), _largest(per_layer)
    hidden, context, rank = number("embedding_length"), number("context_length"), number("attention.kv_lora_rank")
    head_dim = number("attention.key_length_mla") or number("attention.key_length")
    if head_dim is None and _whole(hidden) and _whole(heads):
        head_dim = hidden // heads
    parameters = experts = 0
    for name, count in tensors:
        block = _BLOCK.match(name)
        if name in _COMPUTED_TENSORS or (block and layers is not None and int(block[1]) >= layers):
            continue
        parameters += count
        experts += count if _EXPERTS.match(name) else 0
    total, used = _whole(number("expert_count")), _whole(number("expert_used_count"))
    files = [_file(part) for part in parts]
    licence = fields.get("general.license")
    return _entry(
        path,
        {
            "parameters": parameters,
            "layers": layers,
            "attention_heads": heads,
            # With latent attention the file counts one head of the compressed cache.
            "kv_heads": heads if rank else (kv_heads or heads),
            "head_dim": head_dim,
            "hidden_size": hidden,
            "vocabulary_size": number("vocab_size") or fields.get("tokenizer.ggml.tokens"),
            "context_length": context,
        },
        {
            "active_parameters": parameters - experts + experts * used // total if experts and total and used else None,
            "attention_layers": _gguf_attention_layers(per_layer, number("full_attention_interval"), layers),
            "sliding_window": _gguf_sliding_window(str(arch), number, layers, context),
            "mla": {"kv_lora_rank": rank, "rope_head_dim": number("rope.dimension_count")} if rank else None,
            "float16": False if arch in _OVERFLOWING else None,
            "licence": _LICENCES.get(str(licence).lower(), licence) if isinstance(licence, str) else None,
            "gguf": [
                {
                    "quantization": _quantization(path, fields.get("general.file_type")),
                    **(files[0] if len(files) == 1 else {"files": files}),
                }
            ],
        },
    )


def _parts(path: Path, count: int) -> list[Path]:
    """Return the files that llama.cpp reads as one model when it is given the first (llama_split_path)."""
    if count == 1:
        return [path]
    first = f"-00001-of-{count:05d}.gguf"
    if not path.name.endswith(first):
        raise InspectError(f"{path} is one of {count} parts of a model; give the first one, whose name ends in {first}")
    stem = path.name.removesuffix(first)
    parts = [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise InspectError(f"{part} does not exist; put all {count} parts of the model into one folder")
    return parts


def _file(path: Path) -> dict[str, Any]:
    """Return what the catalog says of one file."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "file": path.name,
        "size_bytes": path.stat().st_size,
        "sha256": sha256,
        "source": {"file": str(path.absolute())},
    }


def _whole_name(path: Path) -> str:
    """Return a file's name, of a split model without the number of the part."""
    return _FIRST_PART.sub("", path.name)


def _read_gguf(path: Path) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    """Return a header's values (of the list of tokens only its length) and each tensor's name and size in values."""
    try:
        import numpy as np  # noqa: PLC0415 - comes with gguf
        from gguf import GGUFReader, GGUFValueType  # noqa: PLC0415 - only this kind of file needs the package
    except ImportError as error:
        raise InspectError(
            f"{path} can not be read without the Python package gguf; install it where Ansible runs (make setup does)"
        ) from error

    class Reader(GGUFReader):  # type: ignore[misc, unused-ignore]
        """Refuses to read past the end, where the package would go on with empty values."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            wanted = int(count) * np.dtype(dtype).itemsize
            if int(count) < 0 or wanted > len(self.data) - int(offset):
                raise ValueError("it ends early")
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Reader(path)
        fields = {
            name: len(field.data)
            if field.types[:1] == [GGUFValueType.ARRAY] and name.startswith("tokenizer.")
            else field.contents()
            for name, field in reader.fields.items()
        }
        return fields, [(str(tensor.name), int(tensor.n_elements)) for tensor in reader.tensors]
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise InspectError(f"{path} is damaged or cut off ({error}); get the file anew") from error


def _largest(value: object) -> Any:
    """Return a number that a file may give for each layer: the largest of them."""
    if isinstance(value, list):
        return max((item for item in value if _whole(item)), default=None)
    return value


def _gguf_attention_layers(per_layer: object, interval: object, layers: int | None) -> int | None:
    every = _whole(interval)
    if every and layers:
        return layers // every
    if isinstance(per_layer, list) and any(not _whole(item) for item in per_layer):
        return sum(1 for item in per_layer if _whole(item)) or None
    return None


def _gguf_sliding_window(arch: str, number: Any, layers: int | None, context: object) -> dict[str, int] | None:
    window, pattern = number("attention.sliding_window"), number("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return _sliding_window(window, sum(1 for sliding in pattern if not sliding), context)
    every = _whole(pattern) or _GGUF_PATTERN.get(arch)
    # Elsewhere llama.cpp keeps every token although the file names a window.
    return _sliding_window(window, (layers or 0) // every, context) if every else None


def _quantization(path: Path, file_type: object) -> str:
    """Return the name of the quantization: as the header has it, else as the file's name has it."""
    from gguf import LlamaFileType  # noqa: PLC0415 - only this kind of file needs the package

    try:
        # 0 is a type too, F32; -1 is none.
        name = LlamaFileType(file_type if isinstance(file_type, int) else -1).name
    except ValueError:
        found = _QUANTIZATION.search(_whole_name(path))
        return found[1].upper() if found else "unknown"
    return re.sub(r"^(MOSTLY|ALL)_|_MOE\Z", "", name)


# --- config.json ---


def _from_config(path: Path) -> dict[str, Any]:
    try:
        top = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InspectError(f"{path} is no JSON text ({error}); get the file anew") from error
    if not isinstance(top, dict):
        raise InspectError(f"{path} is no dictionary; give the config.json of a Hugging Face model")
    text = top.get("text_config")
    config = {**top, **text} if isinstance(text, dict) else top
    if config.get("model_type") == "gemma3_text":
        config = {**_GEMMA3, **config}
    context, layers = config.get("max_position_embeddings"), config.get("num_hidden_layers")
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    rank, rope = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
    head_dim = config.get("head_dim")
    if rank:
        head_dim = (_whole(config.get("qk_nope_head_dim")) or 0) + (_whole(rope) or 0)
    elif head_dim is None and _whole(hidden) and _whole(heads):
        head_dim = int(str(hidden)) // int(str(heads))
    numbers = {
        "parameters": 1,
        "layers": layers,
        "attention_heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "hidden_size": hidden,
        "vocabulary_size": config.get("vocab_size"),
        "context_length": context,
    }
    extra = {
        "attention_layers": _config_attention_layers(config),
        "sliding_window": _config_sliding_window(config),
        "mla": {"kv_lora_rank": rank, "rope_head_dim": rope} if rank else None,
        "float16": False if config.get("model_type") in _OVERFLOWING else None,
    }
    # Everything that the count needs is known to be there.
    _entry(path, numbers, extra)
    numbers["parameters"], extra["active_parameters"] = _parameters(path, config, numbers)
    return _entry(path, numbers, extra)


def _layer_types(config: Mapping[str, Any]) -> list[str]:
    value = config.get("layer_types")
    return [str(item) for item in value] if isinstance(value, list) else []


def _config_attention_layers(config: Mapping[str, Any]) -> int | None:
    kinds = _layer_types(config)
    keeping = [kind for kind in kinds if kind.endswith("_attention") and kind != "linear_attention"]
    return len(keeping) if keeping and len(keeping) < len(kinds) else None


def _config_sliding_window(config: Mapping[str, Any]) -> dict[str, int] | None:
    kinds, model_type, context = (
        _layer_types(config),
        str(config.get("model_type")),
        config.get("max_position_embeddings"),
    )
    window = config.get("sliding_window")
    if config.get("use_sliding_window") is False:
        return None
    if kinds:
        if "chunked_attention" in kinds:
            window = config.get("attention_chunk_size")
        elif "sliding_attention" not in kinds:
            return None
        return _sliding_window(window, kinds.count("full_attention"), context)
    every = _whole(config.get("sliding_window_pattern")) or _CONFIG_PATTERN.get(model_type)
    layers = _whole(config.get("num_hidden_layers")) or 0
    return _sliding_window(window, layers // every if every else 0, context)


def _parameters(path: Path, config: Mapping[str, Any], numbers: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return all parameters and, for a mixture of experts, the active ones."""
    kind = str(config.get("model_type"))
    vision = config.get("vision_config")
    if kind not in COUNTED or (vision is not None and kind != "gemma3_text"):
        what = "with its vision encoder" if kind in COUNTED else f"of model_type {kind}"
        raise InspectError(
            f"{path}: the parameters {what} can not be counted from it (known: {', '.join(COUNTED)}); "
            "give a GGUF file of the model"
        )

    def need(key: str, *other: str) -> int:
        value = next((found for name in (key, *other) if (found := _whole(config.get(name)))), None)
        if value is None:
            raise InspectError(f"{path} gives no {key}; write the entry by hand from the model's card")
        return value

    hidden, layers, vocabulary = numbers["hidden_size"], numbers["layers"], numbers["vocabulary_size"]
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings", kind in _TIED) else 2)
    norms = (4 if kind == "gemma3_text" else 2) * hidden
    total = embeddings + hidden + layers * (_attention(kind, config, numbers, need) + norms)
    if vision is not None:
        total += _siglip(vision, hidden, path)
    if kind in _DENSE:
        return total + layers * 3 * hidden * need("intermediate_size"), None
    width = need("moe_intermediate_size", "intermediate_size")
    experts = need("num_local_experts", "num_experts", "n_routed_experts")
    used = need("num_experts_per_tok")
    if used > experts:
        raise InspectError(f"{path} uses {used} of {experts} experts for a token; get the file anew")
    # A gate, an up and a down matrix; gpt-oss has biases too.
    expert = 3 * hidden * width + (2 * width + hidden if kind == "gpt_oss" else 0)
    router = experts * hidden + (experts if kind == "gpt_oss" or config.get("topk_method") == "noaux_tc" else 0)
    dense = min(_whole(config.get("first_k_dense_replace")) or 0, layers)
    shared = (_whole(config.get("n_shared_experts")) or 0) * 3 * hidden * width
    total += (layers - dense) * (experts * expert + router + shared)
    total += dense * 3 * hidden * (need("intermediate_size") if dense else 0)
    return total, total - (layers - dense) * (experts - used) * expert


def _attention(kind: str, config: Mapping[str, Any], numbers: Mapping[str, Any], need: Any) -> int:
    """Return the parameters of one layer's attention."""
    hidden, heads, kv_heads, dim = (numbers[key] for key in ("hidden_size", "attention_heads", "kv_heads", "head_dim"))
    if config.get("kv_lora_rank"):
        rank, rope, value = need("kv_lora_rank"), need("qk_rope_head_dim"), need("v_head_dim")
        q_rank = _whole(config.get("q_lora_rank"))
        query = q_rank * (hidden + 1 + heads * dim) if q_rank else hidden * heads * dim
        latent = hidden * (rank + rope) + rank + rank * heads * (dim - rope + value)
        return int(query + latent + heads * value * hidden)
    count = 2 * hidden * heads * dim + 2 * hidden * kv_heads * dim
    if kind == "qwen2" or config.get("attention_bias"):
        count += (heads + 2 * kv_heads) * dim
    if config.get("attention_bias"):
        count += hidden
    if kind == "gpt_oss":
        count += heads  # attention sinks
    return int(count + (2 * dim if kind in ("gemma3_text", "qwen3", "qwen3_moe") else 0))


def _siglip(vision: object, out: int, path: Path) -> int:
    """Return the parameters of Gemma 3's vision encoder and of the projection to the model's width."""
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "image_size")
    values = [_whole(vision.get(key) if isinstance(vision, Mapping) else None) for key in keys]
    missing = [key for key, value in zip(keys, values, strict=True) if value is None]
    if missing:
        raise InspectError(f"{path} gives no {', '.join(missing)} in vision_config; give a GGUF file of the model")
    width, inner, layers, patch, image = (int(value or 0) for value in values)
    block = _sizes(((width, width),) * 4, bias=True) + _sizes(((width, inner), (inner, width)), bias=True) + 4 * width
    patches = _sizes(((3 * patch * patch, width),), bias=True) + (image // patch) ** 2 * width
    return patches + layers * block + 2 * width + width * out + width


def _sizes(shapes: Iterable[tuple[int, int]], bias: bool) -> int:
    return sum(rows * columns + (columns if bias else 0) for rows, columns in shapes)
