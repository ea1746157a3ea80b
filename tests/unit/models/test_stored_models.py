# SPDX-License-Identifier: Apache-2.0
"""What lies in a model store, model by model, and removing one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.models import contents, listing, unused

CATALOG: dict[str, Any] = {
    "qwen3-8b": {
        "gguf": [{"file": "Qwen3-8B-Q4_K_M.gguf"}],
        "safetensors": [{"repository": "Qwen/Qwen3-8B"}],
        "ollama": {"tag": "qwen3:8b"},
    },
    "large": {"gguf": [{"files": [{"file": "large-1.gguf"}, {"file": "large-2.gguf"}]}]},
    "gemma": {"ollama": {"tag": "gemma3:1b"}},
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def library(root: Path, name: str, *layers: str) -> Path:
    """Write a model of Ollama's store (manifest/paths.go): its manifest and its layers."""
    for layer in layers:
        write(root / "ollama" / "blobs" / f"sha256-{layer}", layer * 100)
    entries = [{"digest": f"sha256:{layer}", "size": 100} for layer in layers]
    text = json.dumps({"config": entries[0], "layers": entries[1:]})
    return write(root / "ollama" / "manifests" / "registry.ollama.ai" / "library" / name, text)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    gguf = tmp_path / "gguf"
    write(gguf / "aaa" / "Qwen3-8B-Q4_K_M.gguf", "x" * 10)
    write(gguf / "aaa" / "Qwen3-8B-Q4_K_M.gguf.receipt.json", "{}")
    write(gguf / "bbb" / "large-1.gguf", "x")
    write(gguf / "bbb" / "large-2.gguf.partial", "x")
    write(tmp_path / "huggingface" / "models--Qwen--Qwen3-8B" / "blobs" / "a", "x" * 20)
    write(tmp_path / ".receipts" / "huggingface" / "models--Qwen--Qwen3-8B.json", "{}")
    for name in ("qwen3/8b", "qwen3-8b/latest"):
        library(tmp_path, name, "c", "shared")
    library(tmp_path, "gemma3/1b", "d", "shared")
    return tmp_path


def by_name(store: Path) -> dict[str, dict[str, Any]]:
    return {", ".join(entry["names"]): entry for entry in contents.find(str(store))}


def removed(store: Path, name: str) -> list[str]:
    found = contents.paths([by_name(store)[name]["key"]], str(store))
    unused.remove(found, str(store))
    return [str(Path(path).relative_to(store)) for path in found]


def test_every_kind_of_model_is_found(store: Path) -> None:
    found = by_name(store)
    assert {name: (entry["kind"], entry["size_bytes"]) for name, entry in found.items()} == {
        "Qwen3-8B-Q4_K_M.gguf": ("gguf", 10),
        "large-1.gguf": ("gguf", 1),
        "large-2.gguf.partial": ("gguf", 1),
        "Qwen/Qwen3-8B": ("repository", 20),
        "gemma3:1b": ("ollama", 700),
        "qwen3-8b, qwen3:8b": ("ollama", 700),
    }
    assert contents.find(str(store / "nothing")) == []


def test_a_file_goes_with_its_receipt_and_nothing_else(store: Path) -> None:
    assert removed(store, "Qwen3-8B-Q4_K_M.gguf") == [
        "gguf/aaa/Qwen3-8B-Q4_K_M.gguf",
        "gguf/aaa/Qwen3-8B-Q4_K_M.gguf.receipt.json",
    ]
    assert not (store / "gguf" / "aaa").exists() and (store / "gguf" / "bbb").exists()


def test_a_repository_goes_with_what_is_known_of_it(store: Path) -> None:
    assert removed(store, "Qwen/Qwen3-8B") == [
        ".receipts/huggingface/models--Qwen--Qwen3-8B.json",
        "huggingface/models--Qwen--Qwen3-8B",
    ]


def test_layers_that_another_model_has_stay(store: Path) -> None:
    names = removed(store, "qwen3-8b, qwen3:8b")
    assert [Path(name).name for name in names] == ["sha256-c", "latest", "8b"]
    assert (store / "ollama" / "blobs" / "sha256-shared").exists()
    assert [Path(name).name for name in removed(store, "gemma3:1b")] == ["sha256-d", "sha256-shared", "1b"]


def test_beside_a_manifest_that_cannot_be_read_no_layer_is_removed(store: Path) -> None:
    write(store / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "torn" / "1b", "{")
    assert [Path(name).name for name in removed(store, "gemma3:1b")] == ["1b"]


def test_a_key_of_no_model_removes_nothing(store: Path) -> None:
    assert contents.paths([str(store / "gguf"), "/etc/passwd"], str(store)) == []


def rows(store: Path, wanted: list[dict[str, Any]], **more: Any) -> dict[str, str]:
    found = listing.rows(contents.find(str(store)), wanted, CATALOG, **more)
    return {row["what"]: f"{row['use']} {'+'.join(row['models'])}".strip() for row in found}


def test_each_model_has_its_public_name_and_its_use(store: Path) -> None:
    large = store / "gguf" / "bbb" / "large-2.gguf"
    repository = store / "huggingface" / "models--org--new"
    wanted: list[dict[str, Any]] = [
        {"path": str(large), "size_bytes": 5, "sha256": "b" * 64, "model": "large"},
        {"path": str(repository), "size_bytes": 7, "repository": "org/new", "revision": "main", "model": "new"},
        {"path": str(store / "ollama"), "size_bytes": 7, "ollama": "gemma3:1b", "model": "gemma"},
    ]
    assert rows(store, wanted, served=["qwen3-8b"], missing=[str(large), f"{repository}@main"]) == {
        "Qwen3-8B-Q4_K_M.gguf": "served qwen3-8b",
        "Qwen/Qwen3-8B": "served qwen3-8b",
        "qwen3-8b, qwen3:8b": "served qwen3-8b",
        "large-1.gguf": "unused large",
        "large-2.gguf.partial": "incomplete large",
        "org/new": "missing new",
        "gemma3:1b": "planned gemma",
    }


def test_only_what_nothing_uses_may_be_removed(store: Path) -> None:
    found = listing.rows(contents.find(str(store)), [], CATALOG, served=["gemma"])
    assert listing.removal_problem("gpu-01", found, "qwen3-8b") is None
    assert len(listing.chosen(found, "qwen3-8b")) == 3
    assert [row["what"] for row in listing.chosen(found, "Qwen/Qwen3-8B")] == ["Qwen/Qwen3-8B"]
    assert len(listing.chosen(found, "unused")) == 5
    assert listing.removal_problem("gpu-01", found, "gemma") == (
        "gpu-01: the model gemma is in use, because a service serves it; take it out of the node's variables first, "
        "and run site.yml"
    )


def test_an_unknown_model_is_one_sentence(store: Path) -> None:
    found = listing.rows(contents.find(str(store)), [], CATALOG)
    assert listing.name_problem("gema", found, CATALOG) == (
        "the model is 'gema', which no store has; did you mean gemma? stored: Qwen/Qwen3-8B, Qwen3-8B-Q4_K_M.gguf, "
        "gemma, gemma3:1b, large, large-1.gguf, large-2.gguf.partial, qwen3-8b, qwen3:8b"
    )
    assert [listing.name_problem(name, found, CATALOG) for name in ("gemma", "gemma3:1b", "unused")] == [None] * 3


def test_the_table(store: Path) -> None:
    found = listing.rows(contents.find(str(store)), [], CATALOG)
    lines = listing.lines([{**row, "node": "gpu-01", "done": None} for row in found])
    assert lines[:2] == [
        "node    model     in the store as        size  use     done",
        "gpu-01  gemma     gemma3:1b             1 MiB  unused  -",
    ]
    assert listing.lines([]) == []
