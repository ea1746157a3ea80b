# SPDX-License-Identifier: Apache-2.0
"""A catalog entry from a GGUF header or a config.json: the same numbers as the shipped catalog, or one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Catalog
from ansible_collections.fleet.inference.plugins.module_utils.planning.inspect_model import InspectError, inspect_model
from gguf import GGUFWriter, LlamaFileType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning_machines import ROOT, catalog

ENTRIES = catalog()["models"]
SMOLLM2 = ENTRIES["smollm2-135m-instruct"]
CACHED = Path("~/.cache/inference-fleet/models").expanduser() / SMOLLM2["gguf"][0]["sha256"][:12]
NUMBERS = (
    "parameters",
    "active_parameters",
    "layers",
    "attention_heads",
    "kv_heads",
    "head_dim",
    "hidden_size",
    "vocabulary_size",
    "context_length",
    "attention_layers",
    "sliding_window",
    "mla",
    "float16",
)

# --- GGUF ---

HIDDEN, VOCABULARY = 64, 32


def write_gguf(path: Path, arch: str = "llama", tensors: dict[str, tuple[int, ...]] | None = None, **keys: Any) -> Path:
    """Write a model of 3 layers; ``a__b=1`` becomes ``llama.a.b``, and a key of None is left out."""
    values: dict[str, Any] = {
        "block_count": 3,
        "context_length": 4096,
        "embedding_length": HIDDEN,
        "attention__head_count": 8,
        "attention__head_count_kv": 2,
        "general__file_type": int(LlamaFileType.MOSTLY_Q4_K_M),
        "tokenizer__ggml__tokens": [f"t{index}" for index in range(VOCABULARY)],
        **keys,
    }
    writer = GGUFWriter(path, arch)
    for key, value in values.items():
        name = key.replace("__", ".")
        if not name.startswith(("general.", "tokenizer.", "split.")):
            name = f"{arch}.{name}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    shapes = {
        "token_embd.weight": (VOCABULARY, HIDDEN),
        **{f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN) for i in range(3)},
    }
    for name, shape in {**shapes, **(tensors or {})}.items():
        writer.add_tensor(name, np.zeros(shape, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path: Path) -> dict[str, Any]:
    (entry,) = inspect_model(path).values()
    return entry


BASE = VOCABULARY * HIDDEN + 3 * HIDDEN * HIDDEN


def test_a_gguf_file(tmp_path):
    path = write_gguf(tmp_path / "Some_Model.2-Q4_K_M.gguf", general__license="apache-2.0")
    (name, entry), *others = inspect_model(str(path)).items()
    assert not others
    assert name == "some_model.2"
    assert entry == {
        "parameters": BASE,
        "layers": 3,
        "attention_heads": 8,
        "kv_heads": 2,
        "head_dim": 8,
        "hidden_size": HIDDEN,
        "vocabulary_size": VOCABULARY,
        "context_length": 4096,
        "licence": "Apache-2.0",
        "gguf": [
            {
                "quantization": "Q4_K_M",
                "file": "Some_Model.2-Q4_K_M.gguf",
                "size_bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "source": {"file": str(path)},
            }
        ],
    }
    assert list(entry) == [key for key in (*NUMBERS, "licence", "gguf") if key in entry]


def test_the_entry_is_one_for_the_catalog(tmp_path):
    models = inspect_model(write_gguf(tmp_path / "m.gguf"))
    model = Catalog("h", {"models": models, "engines": {}}).model("m", "model")
    assert (model.parameters, model.gguf[0].quantization) == (BASE, "Q4_K_M")


def test_the_real_file_gives_the_shipped_entry():
    file = CACHED / SMOLLM2["gguf"][0]["file"]
    if not file.is_file():
        pytest.skip(f"{file} is not in the cache; `make demo` puts it there")
    (name, entry), *_others = inspect_model(file).items()
    assert name == "smollm2-135m-instruct"
    assert {key: entry.get(key) for key in NUMBERS} == {key: SMOLLM2.get(key) for key in NUMBERS}
    assert {**entry["gguf"][0], "source": None} == {**SMOLLM2["gguf"][0], "source": None}


def test_a_split_gguf(tmp_path):
    names = [f"Some_Model-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2)]
    keys = {"split__count": 2, "general__file_type": None}
    first = write_gguf(tmp_path / names[0], **keys)
    with pytest.raises(InspectError) as refused:
        inspect_model(first)
    assert str(refused.value) == (f"{tmp_path / names[1]} does not exist; put all 2 parts of the model into one folder")
    second = write_gguf(tmp_path / names[1], tensors={"output.weight": (VOCABULARY, HIDDEN)}, **keys)
    ((name, entry),) = inspect_model(first).items()
    assert name == "some_model"
    assert entry["parameters"] == 2 * BASE + VOCABULARY * HIDDEN
    assert entry["gguf"] == [
        {
            "quantization": "Q4_K_M",
            "files": [
                {
                    "file": path.name,
                    "size_bytes": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "source": {"file": str(path)},
                }
                for path in (first, second)
            ],
        }
    ]
    model = Catalog("h", {"models": {name: entry}, "engines": {}}).model(name, "model")
    assert [part.file for part in model.gguf[0].parts] == names


@pytest.mark.parametrize(("arch", "expected"), [("gemma3", False), ("glm4", False), ("gemma4", None), ("llama", None)])
def test_a_gguf_whose_values_overflow_in_float16(tmp_path, arch, expected):
    assert read(write_gguf(tmp_path / "m.gguf", arch)).get("float16") is expected


def test_a_gguf_mixture_of_experts_counts_the_active_parameters(tmp_path):
    experts = {f"blk.{i}.ffn_up_exps.weight": (4, HIDDEN, 16) for i in range(3)}
    entry = read(write_gguf(tmp_path / "m.gguf", "qwen3moe", experts, expert_count=4, expert_used_count=1))
    assert entry["parameters"] == BASE + 3 * 4 * HIDDEN * 16
    assert entry["active_parameters"] == BASE + 3 * HIDDEN * 16


def test_a_gguf_with_latent_attention(tmp_path):
    keys = {
        "attention__head_count_kv": 1,
        "attention__kv_lora_rank": 32,
        "attention__key_length": 48,
        "attention__key_length_mla": 24,
        "rope__dimension_count": 16,
    }
    entry = read(write_gguf(tmp_path / "m.gguf", "deepseek2", **keys))
    assert entry["mla"] == {"kv_lora_rank": 32, "rope_head_dim": 16}
    assert (entry["kv_heads"], entry["head_dim"]) == (8, 24)


@pytest.mark.parametrize(
    ("arch", "keys", "expected"),
    [
        ("gemma3", {"attention__sliding_window": 512, "block_count": 26}, {"window": 512, "full_attention_layers": 4}),
        (
            "gpt-oss",
            {"attention__sliding_window": 128, "block_count": 24},
            {"window": 128, "full_attention_layers": 12},
        ),
        (
            "gemma4",
            {"attention__sliding_window": 512, "attention__sliding_window_pattern": [True, True, False]},
            {"window": 512, "full_attention_layers": 1},
        ),
        ("phi3", {"attention__sliding_window": 2048}, None),
        ("gemma3", {"attention__sliding_window": 4096}, None),
        ("llama", {}, None),
    ],
)
def test_a_gguf_sliding_window(tmp_path, arch, keys, expected):
    assert read(write_gguf(tmp_path / "m.gguf", arch, **keys)).get("sliding_window") == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"attention__head_count_kv": [0, 0, 2]}, 1),
        ({"attention__head_count_kv": [2, 2, 2]}, None),
        ({"full_attention_interval": 3}, 1),
    ],
)
def test_a_gguf_hybrid_keeps_the_cache_of_some_layers(tmp_path, keys, expected):
    entry = read(write_gguf(tmp_path / "m.gguf", **keys))
    assert (entry.get("attention_layers"), entry["kv_heads"]) == (expected, 2)


def test_computed_tensors_and_layers_of_multi_token_prediction_do_not_count(tmp_path):
    extra = {"rope_freqs.weight": (8,), "blk.3.attn_q.weight": (HIDDEN, HIDDEN)}
    entry = read(write_gguf(tmp_path / "m.gguf", tensors=extra, block_count=4, nextn_predict_layers=1))
    assert (entry["layers"], entry["parameters"]) == (3, BASE)


@pytest.mark.parametrize(
    ("name", "file_type", "expected"),
    [
        ("m.gguf", int(LlamaFileType.MOSTLY_Q8_0), "Q8_0"),
        ("m.gguf", int(LlamaFileType.ALL_F32), "F32"),
        ("m-Q3_K_XL.gguf", None, "Q3_K_XL"),
        ("m.bf16.gguf", 9999, "BF16"),
        ("m.gguf", None, "unknown"),
    ],
)
def test_the_quantization(tmp_path, name, file_type, expected):
    assert read(write_gguf(tmp_path / name, general__file_type=file_type))["gguf"][0]["quantization"] == expected


@pytest.mark.parametrize(
    ("arch", "keys", "words"),
    [
        ("llama", {"block_count": None}, "gives no layers; write the entry by hand from the model's card"),
        (
            "llama",
            {"attention__head_count": None, "tokenizer__ggml__tokens": None},
            "gives no attention_heads, head_dim, vocabulary_size; write",
        ),
        ("llama", {"attention__head_count_kv": 3}, "gives kv_heads 3, which does not divide attention_heads 8; get"),
        ("clip", {}, "holds a vision encoder only; give the file of the model itself"),
        (
            "llama",
            {"split__count": 2},
            "is one of 2 parts of a model; give the first one, whose name ends in -00001-of-",
        ),
    ],
)
def test_a_gguf_without_the_numbers_is_refused(tmp_path, arch, keys, words):
    path = write_gguf(tmp_path / "m.gguf", arch, **keys)
    with pytest.raises(InspectError) as refused:
        inspect_model(path)
    assert str(refused.value).startswith(f"{path} {words}")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    (tmp_path / "empty.gguf").touch()
    write_gguf(tmp_path / "a b.gguf")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for name, words in {
        "nowhere.gguf": "does not exist; give a GGUF file, a config.json or a folder that holds one",
        "notes.txt": "is no GGUF file; give",
        "empty.gguf": "is no GGUF file; give",
        "a b.gguf": "can not be in the catalog; rename it with letters, digits and . _ - only",
        "config.json": "is no JSON text (",
        "list.json": "is no dictionary; give the config.json of a Hugging Face model",
        "folder": "holds no config.json; give a GGUF file or a folder of a Hugging Face model",
    }.items():
        with pytest.raises(InspectError) as refused:
            inspect_model(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name} {words}")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return folder / "cut.gguf", write_gguf(folder / "sound.gguf").read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_refused_in_one_sentence(sound, share):
    path, content = sound
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InspectError, match=r"damaged or cut off|is no GGUF file") as refused:
        inspect_model(path)
    assert "\n" not in str(refused.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_damaged_file_gives_an_entry_or_a_sentence(sound, place, value):
    path, content = sound
    # The header only: damage in the weights changes nothing but the checksum.
    at = int((len(content) - 2 * BASE) * place)
    path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
    try:
        assert read(path)["layers"] >= 1
    except InspectError as error:
        assert str(error).startswith(str(path))


# --- config.json ---

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
# The values that count, from the models' own config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b-instruct": LLAMA,
    "llama-3.2-1b-instruct": {
        **LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "mistral-7b-instruct-v0.3": {
        **LLAMA,
        "model_type": "mistral",
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "vocab_size": 32768,
    },
    "mixtral-8x7b-instruct-v0.1": {
        **LLAMA,
        "model_type": "mixtral",
        "max_position_embeddings": 32768,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "sliding_window": None,
        "vocab_size": 32000,
    },
    "qwen2.5-coder-7b-instruct": {
        **LLAMA,
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "qwen3-8b": {
        **LLAMA,
        "model_type": "qwen3",
        "head_dim": 128,
        "intermediate_size": 12288,
        "max_position_embeddings": 32768,
        "num_hidden_layers": 36,
        "vocab_size": 151936,
    },
    "qwen3-30b-a3b": QWEN3_MOE,
    "gemma-3-27b-it": GEMMA3,
    "gemma-3-4b-it": {
        **GEMMA3,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
    },
    "gemma-3-1b-it": {
        "model_type": "gemma3_text",
        "head_dim": 256,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "gpt-oss-20b": GPT_OSS,
    "deepseek-r1-0528": DEEPSEEK,
    "deepseek-v2-lite-chat": {
        **DEEPSEEK,
        "model_type": "deepseek_v2",
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "topk_method": "greedy",
        "vocab_size": 102400,
    },
    "phi-4": {
        **LLAMA,
        "model_type": "phi3",
        "hidden_size": 5120,
        "intermediate_size": 17920,
        "max_position_embeddings": 16384,
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
        "num_key_value_heads": 10,
        "sliding_window": None,
        "vocab_size": 100352,
    },
    "phi-4-mini-instruct": {
        **LLAMA,
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "vocab_size": 200064,
    },
}


def write_config(folder: Path, config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("name", "config"), CONFIGS.items(), ids=list(CONFIGS))
def test_a_config_gives_the_numbers_of_the_shipped_catalog(tmp_path, name, config):
    folder = write_config(tmp_path / name, config)
    expected = {key: ENTRIES[name][key] for key in NUMBERS if key in ENTRIES[name]}
    assert inspect_model(folder) == inspect_model(folder / "config.json") == {name: expected}


def test_a_window_in_every_layer(tmp_path):
    config = {**CONFIGS["mistral-7b-instruct-v0.3"], "sliding_window": 4096}
    assert read(write_config(tmp_path / "m", config))["sliding_window"] == {"window": 4096, "full_attention_layers": 0}


def test_attention_in_chunks_is_a_window(tmp_path):
    kinds = ["chunked_attention", "chunked_attention", "chunked_attention", "full_attention"] * 8
    entry = read(write_config(tmp_path / "m", {**LLAMA, "layer_types": kinds, "attention_chunk_size": 8192}))
    assert entry["sliding_window"] == {"window": 8192, "full_attention_layers": 8}


def test_a_hybrid_keeps_the_cache_of_some_layers(tmp_path):
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 8
    entry = read(write_config(tmp_path / "m", {**LLAMA, "layer_types": kinds}))
    assert entry["attention_layers"] == 8
    assert "sliding_window" not in entry


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": None}, "gives no layers; write the entry by hand from the model's card"),
        ({"hidden_size": "x", "vocab_size": -1}, "gives no head_dim, hidden_size, vocabulary_size; write"),
        ({"num_key_value_heads": 5}, "gives kv_heads 5, which does not divide attention_heads 32; get the file anew"),
        ({"intermediate_size": None}, "gives no intermediate_size; write"),
        (
            {"model_type": "mamba"},
            ": the parameters of model_type mamba can not be counted from it (known: deepseek_v2,",
        ),
        ({"vision_config": {}}, ": the parameters with its vision encoder can not be counted from it (known: "),
        (
            {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 8},
            "uses 8 of 4 experts for a token",
        ),
        ({"kv_lora_rank": 512}, "gives no head_dim, rope_head_dim; write"),
        ({"model_type": "gemma3_text", "vision_config": []}, "gives no hidden_size, intermediate_size, num_hidden"),
    ],
)
def test_a_config_without_the_numbers_is_refused(tmp_path, changes, words):
    folder = write_config(tmp_path / "m", {**LLAMA, **changes})
    with pytest.raises(InspectError) as refused:
        inspect_model(folder)
    assert str(refused.value).removeprefix(f"{folder / 'config.json'}").lstrip(" ").startswith(words)


junk = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**40), st.floats(), st.text(), st.lists(st.text()), st.just({})
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_strange_config_gives_an_entry_or_a_sentence(tmp_path, data):
    config = data.draw(st.sampled_from(list(CONFIGS.values())))
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(config)), junk, max_size=3))
    folder = write_config(tmp_path / "m", {**config, **changes})
    try:
        assert read(folder)["parameters"] >= 1
    except InspectError as error:
        assert str(error).startswith(str(folder))


# --- The playbook ---


def run_playbook(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "playbooks/models.yml"]
    environment = {**os.environ, "ANSIBLE_CACHE_PLUGIN": "memory", "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_playbook_prints_the_entry(tmp_path):
    done = run_playbook("-e", f"inspect={write_config(tmp_path / 'qwen3-8b', CONFIGS['qwen3-8b'])}")
    assert done.returncode == 0, done.stdout + done.stderr
    block = done.stdout.split("inference_models:")[1].split("\nPLAY ")[0]
    expected = {key: ENTRIES["qwen3-8b"][key] for key in NUMBERS if key in ENTRIES["qwen3-8b"]}
    assert yaml.safe_load(block) == {"qwen3-8b": expected}
    assert "changed=0" in done.stdout


def test_the_playbook_fails_with_the_sentence():
    done = run_playbook("-e", "inspect=/nowhere")
    assert done.returncode == 2
    assert "FAILED! => /nowhere does not exist; give a GGUF file, a config.json or a folder" in done.stdout
