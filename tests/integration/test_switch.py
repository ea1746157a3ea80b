# SPDX-License-Identifier: Apache-2.0
"""Another model or backend for a node that serves, while clients ask for what the other node serves too."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet_under_test import MODEL, ROOT, Fleet, Load, Run

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(900)]

#: Where the controller keeps models for the nodes.
MODELS = Path("~/.cache/inference-fleet/models").expanduser()
NODE = "gpu-01"
COPY = "smollm2-copy"
BROKEN = "smollm2-broken"


@dataclasses.dataclass
class Catalog:
    """A model catalog with further models, and what to add to a run that is to know it."""

    arguments: list[str]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """SmolLM2 under a second name, and the beginning of its file, with which an engine ends at once, under a third."""
    folder = tmp_path_factory.mktemp("catalog")
    models = yaml.safe_load((ROOT / "group_vars" / "all" / "models.yml").read_text())["inference_models"]
    given = models[MODEL]["gguf"][0]
    whole = MODELS / given["sha256"][:12] / given["file"]
    part = folder / "part.gguf"
    with whole.open("rb") as stream:
        part.write_bytes(stream.read(20_000_000))
    broken = copy.deepcopy(models[MODEL])
    broken["gguf"] = [
        {
            "quantization": "Q4_1",
            "file": part.name,
            "size_bytes": part.stat().st_size,
            "sha256": hashlib.sha256(part.read_bytes()).hexdigest(),
            "source": {"file": str(part)},
        }
    ]
    file = folder / "models.json"
    file.write_text(json.dumps({"inference_models": {**models, COPY: models[MODEL], BROKEN: broken}}))
    return Catalog(["-e", f"@{file}"])


def switch(fleet: Fleet, *variables: str) -> tuple[Run, Load]:
    """Switch the node's service while three clients, one of which streams, ask for the model that both nodes serve."""
    runs: list[Run] = []
    given = [part for variable in variables for part in ("-e", variable)]

    def happening() -> None:
        runs.append(fleet.play("-l", NODE, *given, playbook="playbooks/switch.yml"))

    load = fleet.ask_while(happening, streaming=1, more=10, pause=0.3)
    assert "Traceback" not in runs[0].output and "[WARNING]" not in runs[0].output
    return runs[0], load


def table(run: Run) -> list[list[str]]:
    """The rows of the node's services in the table at the end."""
    found = re.findall(rf"^ +({NODE}) +(\S+) +(\S+) +(\S+) +(\S.*?) {{2,}}(\S+)$", run.output, re.MULTILINE)
    return [list(row) for row in found]


def host_vars(run: Run) -> dict[str, Any]:
    """The lines for the host's variables, as a user would paste them."""
    text = run.output.split("put these lines into its host_vars")[1].split("\n", 1)[1].split("\n\n")[0]
    parsed = yaml.safe_load(text)
    assert isinstance(parsed, dict)
    return parsed


def installed(fleet: Fleet) -> list[str]:
    return fleet.shell(NODE, "docker ps --all --format '{{.Names}}' | sort").split()


@contextlib.contextmanager
def put_back(fleet: Fleet) -> Iterator[None]:
    """Leave the node as it was; what a test that fails has left, site.yml puts right."""
    try:
        yield
    except BaseException:
        fleet.set_host_vars(NODE, None)
        fleet.converge("-l", NODE)
        raise
    fleet.set_host_vars(NODE, None)
    # The models that were switched to go from the store.
    fleet.converge("-l", NODE, "-e", "model_store_prune=true")
    assert installed(fleet) == ["inference-llamacpp"]
    (entry,) = fleet.fragments()[NODE]["services"]
    assert (entry["name"], entry["model"], entry["port"], entry["stopped"]) == ("llamacpp", MODEL, 8005, False)


def test_a_service_is_switched_to_vllm_and_back_and_no_request_is_lost(fleet: Fleet) -> None:
    """The second time in a window; no client notices, and site.yml agrees."""
    with put_back(fleet):
        run, load = switch(fleet, "service=llamacpp", "backend=vllm")
        assert run.rc == 0, run.output[-4000:]
        assert load.failures == []
        assert "the old one serves until the new one has answered (there is room for both)" in run.output
        assert table(run) == [
            [NODE, "vllm", "vllm", MODEL, "started", "serving"],
            [NODE, "llamacpp", "llamacpp", MODEL, "removed", "removed"],
        ]
        assert installed(fleet) == ["inference-vllm"]
        (entry,) = fleet.fragments()[NODE]["services"]
        assert (entry["name"], entry["backend"], entry["model"], entry["port"]) == ("vllm", "vllm", MODEL, 8003)

        # With the lines that it printed site.yml finds all as it should be.
        fleet.set_host_vars(NODE, host_vars(run))
        started = fleet.container_started(NODE, "vllm")
        assert fleet.converge("-l", NODE).changed == {NODE: 0}
        assert fleet.container_started(NODE, "vllm") == started

        run, load = switch(fleet, "service=vllm", "backend=llamacpp", "way=window")
        assert run.rc == 0, run.output[-4000:]
        assert load.failures == []
        assert "in a window: the old one stops first" in run.output
        assert [row[1:] for row in table(run)] == [
            ["llamacpp", "llamacpp", MODEL, "started", "serving"],
            ["vllm", "vllm", MODEL, "removed", "removed"],
        ]


@pytest.mark.parametrize("way", ["beside", "window"])
def test_what_does_not_start_leaves_the_old_service(fleet: Fleet, catalog: Catalog, way: str) -> None:
    before = fleet.container_started(NODE)
    with put_back(fleet):
        run, load = switch(fleet, f"model={BROKEN}", f"way={way}", *catalog.arguments[1:])
        assert run.rc == 2, run.output[-4000:]
        assert load.failures == []
        said = " ".join(run.output.split())
        assert f"{NODE}: llamacpp was not switched, and is what it was before" in said
        assert "failed to load model" in said
        assert (fleet.container_started(NODE) == before) == (way == "beside")


def test_a_check_tells_and_changes_nothing(fleet: Fleet, catalog: Catalog) -> None:
    before = fleet.container_started(NODE), fleet.fragments()
    arguments = ["--check", "-l", NODE, "-e", f"model={COPY}", "-e", "format=json", *catalog.arguments]
    run = fleet.play(*arguments, playbook="playbooks/switch.yml")
    assert run.rc == 0, run.output[-4000:]
    told = json.loads(run.stdout)
    assert (told["verb"], told["check"], told["not_switched"]) == ("switch", True, [])
    node = told["nodes"][NODE]
    assert node["way"] == "beside"
    assert [(item["service"], item["models"], item["done"]) for item in node["services"]] == [
        ("llamacpp-2", [COPY], "would be started"),
        ("llamacpp", [MODEL], "would be removed"),
    ]
    assert node["inference_services"] == [{"name": "llamacpp-2", "backend": "llamacpp", "model": COPY}]
    assert (fleet.container_started(NODE), fleet.fragments()) == before
