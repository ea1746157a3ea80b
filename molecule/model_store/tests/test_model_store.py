# SPDX-License-Identifier: Apache-2.0
"""The planned models in a node's store: the right bytes, readable by the engines, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]


@pytest.fixture
def store(variables: dict[str, Any]) -> PurePosixPath:
    """The root of the node's store."""
    return PurePosixPath(variables["store"])


@pytest.fixture
def wanted(variables: dict[str, Any]) -> dict[str, Any]:
    """The catalog's entry of the file that the plan takes."""
    return dict(variables["inference_models"][variables["llamacpp_model"]]["gguf"][0])


@pytest.fixture
def own(store: PurePosixPath, variables: dict[str, Any]) -> dict[str, str]:
    """The models that the node wants beside the plan's: name and path."""
    paths = [model["path"].replace("{{ store }}", str(store)) for model in variables["models_of_its_own"]]
    return {PurePosixPath(path).name: path.replace("{{ small_sha256 }}", variables["small_sha256"]) for path in paths}


@pytest.fixture
def path(host: Any, wanted: dict[str, Any], store: PurePosixPath) -> str:
    """Where the file lies; there is exactly one."""
    found = host.check_output("find %s -name %s", str(store), wanted["file"]).split()
    assert len(found) == 1
    return str(found[0])


def files(host: Any, folder: PurePosixPath) -> set[str]:
    """All files below a folder, from there on."""
    return set(host.check_output("find %s -type f -printf '%%P\\n'", str(folder)).split())


def blobs(host: Any, folder: PurePosixPath) -> set[str]:
    """Names of a folder's files, once each name was found to be the file's own checksum."""
    program = (
        "import hashlib, pathlib, sys\n"
        "for file in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    content = file.read_bytes()\n"
        "    git = hashlib.sha1(b'blob %d' % len(content) + bytes(1) + content).hexdigest()\n"
        "    digest = git if len(file.name) == 40 else hashlib.sha256(content).hexdigest()\n"
        "    print(file.name, digest, oct(file.stat().st_mode))"
    )
    found = [line.split() for line in host.check_output("python3 -c %s %s", program, str(folder)).splitlines()]
    for name, digest, mode in found:
        assert (name.removeprefix("sha256-"), mode) == (digest, "0o100644")
    return {name for name, _digest, _mode in found}


def test_the_bytes_are_the_catalogs(host: Any, wanted: dict[str, Any], path: str) -> None:
    file = host.file(path)
    assert file.size == wanted["size_bytes"]
    assert file.sha256sum == wanted["sha256"]


def test_engines_may_read_and_nobody_may_write(host: Any, path: str, store: PurePosixPath) -> None:
    file = host.file(path)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o644)
    for folder in PurePosixPath(path).parents:
        state = host.file(str(folder))
        assert state.user == "root"
        assert state.mode & 0o005 == 0o005, f"{folder} is closed to the engine's user"
        assert state.mode & 0o022 == 0, f"{folder} can be written by others"
    closed = host.check_output("find %s %s -not -perm -o=r", str(store / "huggingface"), str(store / "ollama"))
    assert closed == "", f"{closed} is closed to the engine's user"


def test_the_receipt_vouches_for_it(host: Any, wanted: dict[str, Any], path: str) -> None:
    receipt = json.loads(host.file(f"{path}.receipt.json").content_string)
    mtime_ns = int(host.check_output("python3 -c 'import os, sys; print(os.stat(sys.argv[1]).st_mtime_ns)' %s", path))
    assert receipt == {"sha256": wanted["sha256"], "size": wanted["size_bytes"], "mtime_ns": mtime_ns}


def test_a_repository_in_the_hubs_own_layout(host: Any, store: PurePosixPath) -> None:
    folder = store / "huggingface" / "models--stand-in--small"
    commit = host.file(str(folder / "refs" / "main")).content_string
    snapshot = folder / "snapshots" / commit
    names = host.check_output("find %s -mindepth 1 -printf '%%P %%l\\n' | sort", str(snapshot)).splitlines()
    targets = {name: PurePosixPath(target) for name, _, target in (line.partition(" ") for line in names)}
    # What other programs read of the same weights is left out.
    weights = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert set(targets) == {"config.json", "tokenizer.json"} | weights
    assert {target.name for target in targets.values()} == blobs(host, folder / "blobs")
    assert {str(target.parent) for target in targets.values()} == {"../../blobs"}


def test_a_library_model_in_ollamas_own_layout(host: Any, store: PurePosixPath) -> None:
    top = store / "ollama" / "manifests" / "registry.ollama.ai" / "library"
    assert files(host, top) == {"small/1b", "small/latest"}
    text = host.file(str(top / "small" / "1b")).content_string
    assert host.file(str(top / "small" / "latest")).content_string == text
    manifest = json.loads(text)
    layers = {layer["digest"].replace(":", "-") for layer in [manifest["config"], *manifest["layers"]]}
    assert layers == blobs(host, store / "ollama" / "blobs")


def test_a_real_repository_and_a_plain_file(host: Any, own: dict[str, str], variables: dict[str, Any]) -> None:
    for name, path in own.items():
        if name == "small.gguf":
            assert host.file(path).sha256sum == variables["small_sha256"]
        else:
            assert host.check_output("stat -L -c %%s %s/snapshots/*/model.safetensors", path) == "269060552"


def test_who_brought_it(ask: Any, address: str, variables: dict[str, Any]) -> None:
    _status, text = ask(f"{variables['inference_huggingface_endpoint']}/requests")
    asked = {request["path"] for request in json.loads(text) if request["client"] == address}
    paths = {"/stand-in/small/model-00001-of-00002.safetensors", "/v2/library/small/manifests/1b"}
    assert asked >= paths if variables.get("model_store_via", "node") == "node" else not asked


def test_nothing_is_left_over(host: Any, path: str, store: PurePosixPath, own: dict[str, str]) -> None:
    names = {PurePosixPath(name).name for name in files(host, store / "gguf")}
    whole = {PurePosixPath(path).name, *(name for name in own if name.endswith(".gguf"))}
    assert names == {f"{name}{end}" for name in whole for end in ("", ".receipt.json")}
    assert not [name for name in files(host, store) if name.endswith((".partial", ".tmp"))]


def test_nothing_else_was_set_up(host: Any) -> None:
    assert not host.package("docker.io").is_installed
    assert not host.file("/etc/inference-fleet").exists
