# SPDX-License-Identifier: Apache-2.0
"""Models of the Ollama library in the store, against a stand-in of the registry, and what is removed on request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.models import keeper, unused
from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import Patience, StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.ollama import parse_name
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Hub, Sources
from model_sources import COMMIT, HubStandIn, OllamaRegistryStandIn, library_model, repository


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaRegistryStandIn]:
    monkeypatch.setenv("no_proxy", "*")
    registry = OllamaRegistryStandIn()
    yield registry
    registry.close()


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    hub = HubStandIn()
    yield hub
    hub.close()


def keep(registry: OllamaRegistryStandIn, models: list[dict[str, Any]], root: Path, hub: str = "") -> keeper.Visit:
    sources = Sources(Hub(hub or registry.url), registry.url, Patience(5, 0))
    visit = keeper.inspect(models, str(root), sources)
    keeper.bring(visit, sources)
    return visit


def test_ollama_s_own_layout(registry: OllamaRegistryStandIn, tmp_path: Path) -> None:
    assert len(keep(registry, [library_model(tmp_path)], tmp_path).added) == 1
    top = tmp_path / "ollama"
    # Under its own name and under the public one.
    names = sorted(str(path.relative_to(top)) for path in (top / "manifests").rglob("*") if path.is_file())
    assert names == [f"manifests/registry.ollama.ai/library/{name}" for name in ("tiny-1b/latest", "tiny/1b")]
    assert all((top / name).read_bytes() == registry.manifest("library/tiny:1b") for name in names)
    layers = {path.name: path.read_bytes() for path in (top / "blobs").iterdir()}
    assert layers == {f"sha256-{hashlib.sha256(layer).hexdigest()}": layer for layer in registry.layers}
    registry.requests.clear()
    assert keep(registry, [library_model(tmp_path)], tmp_path).missing == [] and registry.requests == []


def test_a_second_public_name_loads_nothing(registry: OllamaRegistryStandIn, tmp_path: Path) -> None:
    models = [library_model(tmp_path), library_model(tmp_path, model="other")]
    keep(registry, models[:1], tmp_path)
    registry.requests.clear()
    assert len(keep(registry, models, tmp_path).added) == 1
    assert registry.requests == ["/v2/library/tiny/manifests/1b"]


def test_unknown_model(registry: OllamaRegistryStandIn, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        keep(registry, [library_model(tmp_path, ollama="tiny:2b")], tmp_path)
    assert str(error.value) == (
        f"tiny:2b is not in the Ollama registry {registry.url}; correct ollama.tag in the model's entry of "
        "inference_models"
    )
    assert list(tmp_path.iterdir()) == []


def test_no_registry(hub: HubStandIn, registry: OllamaRegistryStandIn, tmp_path: Path) -> None:
    hub.repository.files = {}
    with pytest.raises(StoreError, match=r"tiny:1b: .* answered 401"):
        keeper.inspect([library_model(tmp_path)], str(tmp_path), Sources(Hub(), hub.url, Patience(5, 0)))
    registry.layers = [b"{}"]
    assert keep(registry, [library_model(tmp_path)], tmp_path).added


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen3:8b", ("registry.ollama.ai", "library", "qwen3", "8b")),
        ("qwen3-8b", ("registry.ollama.ai", "library", "qwen3-8b", "latest")),
        ("someone/qwen3:8b", ("registry.ollama.ai", "someone", "qwen3", "8b")),
        ("hf.co/org/model-GGUF:Q4_K_M", ("hf.co", "org", "model-GGUF", "Q4_K_M")),
    ],
)
def test_names(name: str, parts: tuple[str, ...]) -> None:
    assert parse_name(name) == parts


@pytest.mark.parametrize("name", ["", "a/b/c/d", "../x", "a:b:c", "a.b/c", "x" * 81])
def test_names_that_ollama_cannot_give(name: str) -> None:
    with pytest.raises(StoreError, match="is no name that Ollama can give a model"):
        parse_name(name)


def test_what_no_plan_names(registry: OllamaRegistryStandIn, hub: HubStandIn, tmp_path: Path) -> None:
    wanted = [repository(tmp_path), library_model(tmp_path)]
    keep(registry, [*wanted, repository(tmp_path, revision="pr/1", files=["*.safetensors"])], tmp_path, hub.url)
    assert unused.find(wanted, str(tmp_path)) == [str(tmp_path / "huggingface/models--org--name/refs/pr/1")]
    strangers = [
        tmp_path / "gguf" / "abc" / "old.gguf",
        tmp_path / "huggingface" / "models--org--old" / "blobs" / "x",
        tmp_path / "huggingface" / "models--org--name" / "blobs" / "old",
        tmp_path / "huggingface" / "models--org--name" / "snapshots" / ("c" * 40) / "config.json",
        tmp_path / "ollama" / "manifests" / "registry.ollama.ai" / "library" / "old" / "1b",
        tmp_path / "ollama" / "blobs" / "sha256-old",
    ]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
    found = unused.find(wanted, str(tmp_path))
    assert len(found) == 7 and all(any(str(path).startswith(item) for item in found) for path in strangers)
    assert unused.size_bytes(found) == 6 * 3 + len(COMMIT)
    unused.remove(found, str(tmp_path))
    assert unused.find(wanted, str(tmp_path)) == [] and not any(path.exists() for path in strangers)
    assert not (tmp_path / "gguf").exists()
    # What is wanted is untouched.
    assert keeper.inspect(wanted, str(tmp_path), Sources()).missing == []


def test_what_is_not_placed_yet_is_kept(registry: OllamaRegistryStandIn, hub: HubStandIn, tmp_path: Path) -> None:
    parts = [
        tmp_path / "huggingface" / "models--org--name" / "blobs" / "half.partial",
        tmp_path / "ollama" / "blobs" / "sha256-half.partial",
        tmp_path / "gguf" / "abc" / "model.gguf.partial",
    ]
    for path in parts:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    file = {"path": str(tmp_path / "gguf" / "abc" / "model.gguf"), "sha256": "0" * 64, "size_bytes": 9, "model": "m"}
    assert unused.find([repository(tmp_path), library_model(tmp_path), file], str(tmp_path)) == []
    assert unused.find([file], str(tmp_path)) == [
        str(tmp_path / "huggingface" / "models--org--name"),
        str(tmp_path / "ollama" / "blobs" / "sha256-half.partial"),
    ]
