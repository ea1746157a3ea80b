# SPDX-License-Identifier: Apache-2.0
"""The planned model's file in a node's store: the right bytes, readable by the engines, and nothing half-written."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest

testinfra_hosts = ["gpu-nodes"]

STORE = PurePosixPath("/var/lib/inference-fleet/models")


@pytest.fixture
def wanted(variables: dict[str, Any]) -> dict[str, Any]:
    """The catalog's entry of the file that the plan takes."""
    return dict(variables["inference_models"][variables["llamacpp_model"]]["gguf"][0])


@pytest.fixture
def path(host: Any, wanted: dict[str, Any]) -> str:
    """Where the file lies; there is exactly one."""
    found = host.check_output("find %s -name %s", str(STORE), wanted["file"]).split()
    assert len(found) == 1
    return str(found[0])


def test_the_bytes_are_the_catalogs(host: Any, wanted: dict[str, Any], path: str) -> None:
    file = host.file(path)
    assert file.size == wanted["size_bytes"]
    assert file.sha256sum == wanted["sha256"]


def test_engines_may_read_and_nobody_may_write(host: Any, path: str) -> None:
    file = host.file(path)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o644)
    for folder in PurePosixPath(path).parents:
        state = host.file(str(folder))
        assert state.user == "root"
        assert state.mode & 0o005 == 0o005, f"{folder} is closed to the engine's user"
        assert state.mode & 0o022 == 0, f"{folder} can be written by others"


def test_the_receipt_vouches_for_it(host: Any, wanted: dict[str, Any], path: str) -> None:
    receipt = json.loads(host.file(f"{path}.receipt.json").content_string)
    mtime_ns = int(host.check_output("python3 -c 'import os, sys; print(os.stat(sys.argv[1]).st_mtime_ns)' %s", path))
    assert receipt == {"sha256": wanted["sha256"], "size": wanted["size_bytes"], "mtime_ns": mtime_ns}


def test_nothing_is_left_over(host: Any, path: str) -> None:
    names = {PurePosixPath(line).name for line in host.check_output("find %s -type f", str(STORE)).split()}
    assert names == {PurePosixPath(path).name, PurePosixPath(path).name + ".receipt.json"}


def test_nothing_else_was_set_up(host: Any) -> None:
    assert not host.package("docker.io").is_installed
    assert not host.file("/etc/inference-fleet").exists
