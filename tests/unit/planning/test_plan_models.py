# SPDX-License-Identifier: Apache-2.0
"""What the plan says the model store must hold, for every kind of weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.models.hub import folder_name
from ansible_collections.fleet.inference.plugins.module_utils.models.store import check_models
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from planning_machines import MACHINES, catalog

CATALOG = catalog()
STORE = "/var/lib/inference-fleet/models"


def models(*services: tuple[str, str], book: dict[str, Any] = CATALOG) -> list[dict[str, Any]]:
    wished = [{"backend": backend, "model": model} for backend, model in services]
    found = plan_node(MACHINES["h100"], {"host": "gpu-01", "inference_services": wished}, book)["models"]
    # The store takes every entry as it is.
    check_models(found, STORE)
    return list(found)


def test_a_repository() -> None:
    assert models(("vllm", "llama-3.1-8b-instruct")) == [
        {
            "model": "llama-3.1-8b-instruct",
            "quantization": "bf16",
            "path": f"{STORE}/huggingface/{folder_name('meta-llama/Llama-3.1-8B-Instruct')}",
            "size_bytes": CATALOG["models"]["llama-3.1-8b-instruct"]["safetensors"][0]["size_bytes"],
            "repository": "meta-llama/Llama-3.1-8B-Instruct",
            "revision": CATALOG["models"]["llama-3.1-8b-instruct"]["safetensors"][0]["revision"],
            "files": [],
        }
    ]


def test_a_model_of_the_ollama_library() -> None:
    (entry,) = models(("ollama", "qwen3-8b"))
    assert (entry["path"], entry["model"], entry["ollama"]) == (f"{STORE}/ollama", "qwen3-8b", "qwen3:8b")


def test_one_repository_for_two_engines() -> None:
    book = copy.deepcopy(CATALOG)
    del book["models"]["qwen3-8b"]["safetensors"][1:]
    services = (("vllm", "qwen3-8b"), ("sglang", "qwen3-8b"), ("llamacpp", "qwen3-8b"))
    found = models(*services, book=book)
    assert [[kind for kind in ("sha256", "repository") if kind in entry] for entry in found] == [
        ["sha256"],
        ["repository"],
    ]


def test_two_public_names_of_one_library_model() -> None:
    book = copy.deepcopy(CATALOG)
    book["models"]["copy"] = book["models"]["qwen3-8b"]
    assert [entry["model"] for entry in models(("ollama", "qwen3-8b"), ("ollama", "copy"), book=book)] == [
        "copy",
        "qwen3-8b",
    ]


def test_two_revisions_and_patterns() -> None:
    book = copy.deepcopy(CATALOG)
    del book["models"]["qwen3-8b"]["safetensors"][1:]
    book["models"]["pinned"] = copy.deepcopy(book["models"]["qwen3-8b"])
    book["models"]["pinned"]["safetensors"][0].update(revision="0" * 40, files=["*.json", "*.safetensors"])
    found = models(("vllm", "pinned"), ("sglang", "qwen3-8b"), book=book)
    assert [(entry["revision"], entry["files"]) for entry in found] == [
        ("0" * 40, ["*.json", "*.safetensors"]),
        ("main", []),
    ]
    book["models"]["pinned"]["safetensors"][0]["files"] = "*.json"
    with pytest.raises(PlanError, match=r"files of inference_models\['pinned'\].* is '\*.json'; give a list of texts"):
        models(("vllm", "pinned"), book=book)
