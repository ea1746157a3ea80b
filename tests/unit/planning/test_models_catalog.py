# SPDX-License-Identifier: Apache-2.0
"""The shipped model catalog agrees with itself and with known numbers; each wrong value is refused in one sentence."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import (
    SAFETENSORS_FORMATS,
    Catalog,
    LatentAttention,
    Model,
    ModelFile,
    OllamaModel,
    SlidingWindow,
    Weights,
)
from planning_machines import ROOT, catalog

CATALOG = catalog()
ENTRIES = CATALOG["models"]
BOOK = Catalog("h", CATALOG)
MODELS = [BOOK.model(name, "model") for name in ENTRIES]
GIB = 1024**3
#: Bits of a parameter that is not an embedding.
BITS = {"bf16": 16, "fp8": 8, "int8": 8, "awq": 4.25, "gptq": 4.25, "nvfp4": 4.5, "mxfp4": 4.25}


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that comes twice, of which the last one would win without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _value in node.value]
        assert len(keys) == len(set(keys)), keys
        return super().construct_mapping(node, deep)


def test_the_catalog_is_large_sorted_and_without_duplicates():
    text = (ROOT / "group_vars" / "all" / "models.yml").read_text(encoding="utf-8")
    names = list(yaml.load(text, UniqueKeys)["inference_models"])
    assert len(names) >= 30
    assert names == sorted(names)
    repositories = [weights.repository for model in MODELS for weights in model.safetensors]
    assert len(repositories) == len(set(repositories))
    tags = [model.ollama.tag for model in MODELS if model.ollama]
    assert len(tags) == len(set(tags))
    checksums = [part.sha256 for model in MODELS for file in model.gguf for part in file.parts or (file,)]
    assert len(checksums) == len(set(checksums))


def test_the_catalog_has_every_kind_of_model():
    assert {"chat", "code", "reasoning", "tools", "vision"} == {name for item in MODELS for name in item.capabilities}
    assert sum(1 for item in MODELS if item.active_parameters) >= 10
    assert sum(1 for item in MODELS if item.mla) >= 5
    assert sum(1 for item in MODELS if item.sliding_window) >= 5
    assert sum(1 for item in MODELS if item.gguf) >= 20
    assert any(item.gated for item in MODELS)
    assert any(file.parts for item in MODELS for file in item.gguf)
    assert [item.name for item in MODELS if not item.float16] == [
        item.name for item in MODELS if item.name.startswith("gemma-3-")
    ]
    assert {weights.format for item in MODELS for weights in item.safetensors} == set(SAFETENSORS_FORMATS) - {"fp16"}


@pytest.mark.parametrize("model", MODELS, ids=list(ENTRIES))
def test_numbers_agree(model):
    assert model.licence
    assert model.capabilities == tuple(sorted(model.capabilities))
    assert model.gated is model.licence.startswith(("Llama", "Gemma"))
    # Embeddings and the largest part of attention are in the parameters.
    attention = model.layers * model.hidden_size * model.attention_heads * model.head_dim
    assert model.vocabulary_size * model.hidden_size + (0 if model.mla else attention) < model.parameters
    sizes = [weights.size_bytes for weights in model.safetensors]
    assert sizes == sorted(sizes, reverse=True), "best quality first"
    for weights in model.safetensors:
        bits = weights.size_bytes * 8 / model.parameters
        if weights.format == "bf16":
            assert weights.size_bytes == 2 * model.parameters
        else:
            # At least all in the format, at most the embeddings and the vision encoder at 16 bits as well.
            sixteen = 2 * model.vocabulary_size * model.hidden_size + 1_000_000_000
            most = BITS[weights.format] + 16 * min(1, sixteen / model.parameters)
            assert BITS[weights.format] <= bits <= most, weights
    if model.ollama and model.ollama.quantization in ("Q4_0", "Q4_K_M"):
        assert 4.2 <= model.ollama.size_bytes * 8 / model.parameters <= 7.1


# Billions of parameters and active ones, layers, KV heads, KiB a token at 16 bits, GiB at bf16: as published.
KNOWN = [
    ("llama-3.2-1b-instruct", 1.24, None, 16, 8, 32, 2.3),
    ("llama-3.2-3b-instruct", 3.21, None, 28, 8, 112, 6.0),
    ("llama-3.1-8b-instruct", 8.03, None, 32, 8, 128, 15.0),
    ("llama-3.3-70b-instruct", 70.6, None, 80, 8, 320, 131.5),
    ("llama-3.1-405b-instruct", 406, None, 126, 8, 504, 756),
    ("qwen2.5-coder-1.5b-instruct", 1.54, None, 28, 2, 28, 2.9),
    ("qwen2.5-coder-7b-instruct", 7.62, None, 28, 4, 56, 14.2),
    ("qwen2.5-coder-14b-instruct", 14.8, None, 48, 8, 192, 27.6),
    ("qwen2.5-coder-32b-instruct", 32.8, None, 64, 8, 256, 61.1),
    ("qwen3-0.6b", 0.6, None, 28, 8, 112, 1.1),
    ("qwen3-1.7b", 1.7, None, 28, 8, 112, 3.2),
    ("qwen3-4b", 4.0, None, 36, 8, 144, 7.5),
    ("qwen3-8b", 8.19, None, 36, 8, 144, 15.3),
    ("qwen3-14b", 14.8, None, 40, 8, 160, 27.6),
    ("qwen3-32b", 32.8, None, 64, 8, 256, 61.1),
    ("qwen3-30b-a3b", 30.5, 3.3, 48, 4, 96, 56.8),
    ("qwen3-235b-a22b-instruct-2507", 235, 22, 94, 4, 188, 438),
    ("gemma-3-1b-it", 1.0, None, 26, 1, 26, 1.9),
    ("gemma-3-4b-it", 4.3, None, 34, 4, 136, 8.0),
    ("gemma-3-12b-it", 12.2, None, 48, 8, 384, 22.7),
    ("gemma-3-27b-it", 27.4, None, 62, 16, 496, 51.0),
    ("mistral-7b-instruct-v0.3", 7.25, None, 32, 8, 128, 13.5),
    ("mistral-nemo-instruct-2407", 12.2, None, 40, 8, 160, 22.7),
    ("devstral-small-2507", 23.6, None, 40, 8, 160, 44.0),
    ("mixtral-8x7b-instruct-v0.1", 46.7, 12.9, 32, 8, 128, 87.0),
    ("gpt-oss-20b", 20.9, 4.2, 24, 8, 48, None),
    ("gpt-oss-120b", 116.8, 5.7, 36, 8, 72, None),
    ("deepseek-r1-0528", 671, 37, 61, 128, 68.6, None),
    ("phi-4", 14.7, None, 40, 10, 200, 27.4),
    ("phi-4-mini-instruct", 3.84, None, 32, 8, 128, 7.2),
]


@pytest.mark.parametrize("row", KNOWN, ids=[row[0] for row in KNOWN])
def test_known_numbers(row):
    name, billions, active, layers, kv_heads, kib, gib = row
    model = BOOK.model(name, "model")
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.02)
    if active is None:
        assert model.active_parameters is None
    else:
        assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.03)
    assert (model.layers, model.kv_heads) == (layers, kv_heads)
    if model.mla:
        values = model.layers * (model.mla.kv_lora_rank + model.mla.rope_head_dim)
    else:
        values = 2 * model.layers * model.kv_heads * model.head_dim
    assert values * 2 / 1024 == pytest.approx(kib, rel=0.002)
    if gib is not None:
        assert model.safetensors[0].format == "bf16"
        assert model.safetensors[0].size_bytes / GIB == pytest.approx(gib, rel=0.03)


def test_windows_and_latent_attention():
    assert BOOK.model("gemma-3-1b-it", "m").sliding_window == SlidingWindow(512, 4)
    assert BOOK.model("gemma-3-27b-it", "m").sliding_window == SlidingWindow(1024, 10)
    assert BOOK.model("gpt-oss-20b", "m").sliding_window == SlidingWindow(128, 12)
    assert BOOK.model("mistral-7b-instruct-v0.3", "m").sliding_window is None
    assert BOOK.model("deepseek-r1-0528", "m").mla == LatentAttention(512, 64)
    assert BOOK.model("qwen3.6-27b", "m").attention_layers == 16
    # The sizes that the publisher's index names.
    assert BOOK.model("gpt-oss-20b", "m").safetensors[0].size_bytes == 13_761_264_768
    assert BOOK.model("gpt-oss-120b", "m").safetensors[0].size_bytes == 65_248_815_744


def test_every_key_is_read():
    entry = {
        **_without_sources(),
        "active_parameters": 1_000_000_000,
        "attention_layers": 9,
        "sliding_window": {"window": 4096, "full_attention_layers": 0},
        "mla": {"kv_lora_rank": 512, "rope_head_dim": 64},
        "float16": False,
        "gated": True,
        "capabilities": ["chat", "code"],
        "safetensors": [{"format": "fp8", "repository": "a/b", "size_bytes": 9_000_000_000}],
        "ollama": {"tag": "library/x:8b", "size_bytes": 5, "quantization": "Q4_0"},
    }
    model = Catalog("h", {"models": {"x": entry}, "engines": {}}).model("x", "model")
    assert model.active_parameters == 1_000_000_000
    assert model.attention_layers == 9
    assert model.sliding_window == SlidingWindow(4096, 0)
    assert model.mla == LatentAttention(512, 64)
    assert model.float16 is False
    assert (model.licence, model.gated, model.capabilities) == ("Apache-2.0", True, ("chat", "code"))
    assert model.safetensors == (Weights("fp8", "a/b", "main", 9_000_000_000),)
    assert model.ollama == OllamaModel("library/x:8b", 5, "Q4_0")
    assert model.gguf == ()


def test_all_new_keys_are_optional():
    entry = {key: value for key, value in _without_sources().items() if key != "licence"}
    model = Catalog("h", {"models": {"x": entry}, "engines": {}}).model("x", "model")
    assert model == Model(name="x", gguf=(), **{key: entry[key] for key in _NUMBERS})


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


def _without_sources() -> dict[str, Any]:
    return {key: ENTRIES["qwen3-8b"][key] for key in (*_NUMBERS, "licence")}


def _files(*names: str, **changes: Any) -> dict[str, Any]:
    files = [
        {"file": name, "size_bytes": 1 + n, "sha256": f"{n}" * 64, "source": {"file": f"/srv/{name}"}}
        for n, name in enumerate(names)
    ]
    return {"gguf": [{"quantization": "Q4_K_M", "files": files, **changes}]}


def test_a_split_gguf_is_one_file_of_several_parts():
    names = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]

    def read(**changes: Any) -> ModelFile:
        entry = {**_without_sources(), **_files(*names)}
        entry["gguf"][0]["files"][1] |= changes
        return Catalog("h", {"models": {"x": entry}, "engines": {}}).model("x", "model").gguf[0]

    whole = read()
    assert (whole.quantization, whole.file, whole.size_bytes, whole.source) == (
        "Q4_K_M",
        names[0],
        3,
        {"file": "/srv/a-00001-of-00002.gguf"},
    )
    assert [(part.quantization, part.file, part.size_bytes, part.sha256) for part in whole.parts] == [
        ("Q4_K_M", names[0], 1, "0" * 64),
        ("Q4_K_M", names[1], 2, "1" * 64),
    ]
    # Publishers replace parts and leave the first, which may hold the metadata alone.
    assert read(sha256="a" * 64).sha256 != whole.sha256


def _weights(**changes: Any) -> dict[str, Any]:
    good = {"format": "fp8", "repository": "Qwen/Qwen3-8B-FP8", "revision": "main", "size_bytes": 9_000_000_000}
    return {"safetensors": [{**good, **changes}]}


AT = "inference_models['qwen3-8b']"
PARTS = "all parts in their order, name-00001-of-00003.gguf for the first of three"
REFUSALS = [
    ({"active_parameters": "3b"}, f"active_parameters of {AT} is '3b'; give a whole number of at least 1"),
    (
        {"active_parameters": 9_000_000_000},
        f"active_parameters of {AT} is 9000000000; give at most parameters 8190735360",
    ),
    ({"attention_layers": 37}, f"attention_layers of {AT} is 37; give at most layers 36"),
    (
        {"sliding_window": 4096},
        f"sliding_window of {AT} is 4096; give a dictionary of window and full_attention_layers",
    ),
    (
        {"sliding_window": {"full_attention_layers": 1}},
        f"window of {AT}.sliding_window is missing; give a whole number of at least 1",
    ),
    (
        {"sliding_window": {"window": 32768, "full_attention_layers": 1}},
        f"window of {AT}.sliding_window is 32768; give less than context_length 32768, or leave sliding_window out",
    ),
    (
        {"sliding_window": {"window": 512, "full_attention_layers": 37}},
        f"full_attention_layers of {AT}.sliding_window is 37; give a whole number from 0 to layers 36",
    ),
    (
        {"sliding_window": {"window": 512}},
        f"full_attention_layers of {AT}.sliding_window is missing; give a whole number from 0 to layers 36",
    ),
    ({"mla": 512}, f"mla of {AT} is 512; give a dictionary of kv_lora_rank and rope_head_dim"),
    (
        {"mla": {"kv_lora_rank": 512}},
        f"rope_head_dim of {AT}.mla is missing; give a whole number of at least 1",
    ),
    ({"licence": 2}, f"licence of {AT} is 2; give a text"),
    ({"float16": "no"}, f"float16 of {AT} is 'no'; give true or false"),
    (
        {"contxt_length": 4096},
        f"{AT} has the unknown key 'contxt_length'; did you mean context_length? known: context_length, "
        "attention_heads, attention_layers, licence, active_parameters, safetensors, capabilities, sliding_window and "
        "11 more in group_vars/all/models.yml",
    ),
    (
        _files("a-00001-of-00002.gguf"),
        f"files of {AT}.gguf[0] is 'a-00001-of-00002.gguf'; give {PARTS}",
    ),
    (
        _files("a-00002-of-00002.gguf", "a-00001-of-00002.gguf"),
        f"files of {AT}.gguf[0] is 'a-00002-of-00002.gguf, a-00001-of-00002.gguf'; give {PARTS}",
    ),
    (_files("a.gguf", "b.gguf"), f"files of {AT}.gguf[0] is 'a.gguf, b.gguf'; give {PARTS}"),
    (_files(), f"files of {AT}.gguf[0] is 'empty'; give {PARTS}"),
    (_files(files="x"), f"files of {AT}.gguf[0] is 'x'; give {PARTS}"),
    (_files(files=["x"]), f"entry of {AT}.gguf[0].files[0] is 'x'; give a dictionary"),
    (
        _files("a-00001-of-00002.gguf", "a-00002-of-00002.gguf", sha256="0" * 64),
        f"{AT}.gguf[0] has files and sha256 beside them; give sha256 to each of the files",
    ),
    ({"gated": "yes"}, f"gated of {AT} is 'yes'; give true or false"),
    (
        {"capabilities": ["chat", "images"]},
        f"capabilities of {AT} is 'images'; give some of chat, code, reasoning, tools, vision",
    ),
    ({"safetensors": "x"}, f"safetensors of {AT} is 'x'; give a list of repositories, best quality first"),
    ({"safetensors": ["x"]}, f"entry of {AT}.safetensors[0] is 'x'; give a dictionary"),
    (
        _weights(format="gguf"),
        f"format of {AT}.safetensors[0] is 'gguf'; give one of bf16, fp16, fp8, int8, nvfp4, mxfp4, awq, gptq",
    ),
    (
        _weights(repository="Qwen3-8B"),
        f"repository of {AT}.safetensors[0] is 'Qwen3-8B'; give a repository such as Qwen/Qwen3-8B",
    ),
    (_weights(revision="a b"), f"revision of {AT}.safetensors[0] is 'a b'; give a commit, a tag or a branch"),
    (
        _weights(size_bytes=9),
        f"size_bytes of {AT}.safetensors[0] is 9; give 3071525760 to 40953676800 (3 to 40 bits a parameter)",
    ),
    (
        _weights(size_bytes=90_000_000_000),
        f"size_bytes of {AT}.safetensors[0] is 90000000000; give 3071525760 to 40953676800 (3 to 40 bits a parameter)",
    ),
    ({"ollama": "qwen3:8b"}, f"ollama of {AT} is 'qwen3:8b'; give a dictionary of tag, size_bytes and quantization"),
    (
        {"ollama": {"tag": "qwen3", "size_bytes": 1, "quantization": "Q4_K_M"}},
        f"tag of {AT}.ollama is 'qwen3'; give a name and a tag such as qwen3:8b",
    ),
    (
        {"ollama": {"tag": "qwen3:8b", "quantization": "Q4_K_M"}},
        f"size_bytes of {AT}.ollama is missing; give a whole number of at least 1",
    ),
    (
        {"ollama": {"tag": "qwen3:8b", "size_bytes": 1}},
        f"quantization of {AT}.ollama is missing; give a text",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSALS, ids=[row[1][:70] for row in REFUSALS])
def test_a_wrong_value_is_refused_in_one_sentence(changes, sentence):
    book = copy.deepcopy(CATALOG)
    book["models"]["qwen3-8b"].update(changes)
    with pytest.raises(PlanError) as refused:
        Catalog("gpu-02", book).model("qwen3-8b", "llamacpp_model")
    assert str(refused.value) == f"gpu-02: {sentence}"


def test_all_wrong_values_of_an_entry_are_told_at_once():
    book = copy.deepcopy(CATALOG)
    entry = book["models"]["qwen3-8b"]
    entry.update(
        {
            "layers": 0,
            "kv_head": 8,
            "licence": 2,
            "mla": {},
            "sliding_window": {"window": 32768, "full_attention_layers": -1},
            "ollama": {"tag": "qwen3", "size_bytes": 1, "quantization": ""},
        }
    )
    entry["gguf"][0].update(sha256="abc", source=None)
    entry["safetensors"][0].update(format="bf61", size_bytes=9)
    entry["safetensors"][1].update(revision="a b")
    with pytest.raises(PlanError) as refused:
        Catalog("gpu-02", book).model("qwen3-8b", "llamacpp_model")
    assert [problem.partition("; ")[0] for problem in refused.value.problems] == [
        f"gpu-02: {text}"
        for text in (
            f"{AT} has the unknown key 'kv_head'",
            f"layers of {AT} is 0",
            f"sha256 of {AT}.gguf[0] is 'abc'",
            f"source of {AT}.gguf[0] is missing",
            f"window of {AT}.sliding_window is 32768",
            f"full_attention_layers of {AT}.sliding_window is -1",
            f"kv_lora_rank of {AT}.mla is missing",
            f"rope_head_dim of {AT}.mla is missing",
            f"licence of {AT} is 2",
            f"format of {AT}.safetensors[0] is 'bf61'",
            f"size_bytes of {AT}.safetensors[0] is 9",
            f"revision of {AT}.safetensors[1] is 'a b'",
            f"tag of {AT}.ollama is 'qwen3'",
            f"quantization of {AT}.ollama is ''",
        )
    ]


def test_revisions_are_commits_or_main():
    for model in MODELS:
        for weights in model.safetensors:
            assert weights.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", weights.revision)
