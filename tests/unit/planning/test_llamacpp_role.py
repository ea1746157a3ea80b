# SPDX-License-Identifier: Apache-2.0
"""The role llamacpp knows what the plan reads, and hands on what the plan decides."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.fleet.inference.plugins.module_utils.planning import plan_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.backend_llamacpp import KV_CACHE_TYPES
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import VARIABLES
from ansible_collections.fleet.inference.plugins.module_utils.preflight import variables
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import ServiceSpec
from planning_machines import MACHINES, ROOT, catalog

SPECS, _ = variables.load_specs(ROOT / "roles")
READ = sorted(name for name in VARIABLES if name.startswith("llamacpp_"))


def test_the_plan_reads_variables_of_the_role() -> None:
    """Which of them is a task's own, and not the plan's, is named here."""
    assert {name for name in SPECS if name.startswith("llamacpp_")} == {*READ, "llamacpp_user"}
    assert tuple(SPECS["llamacpp_kv_cache_type"]["choices"]) == KV_CACHE_TYPES


@pytest.mark.parametrize("name", READ)
def test_a_wrong_name_is_answered_with_the_right_one(name: str) -> None:
    wrong = name[:-2] + name[-1]
    sentence = f"gpu-01: no variable is called {wrong}; did you mean {name}?"
    assert variables.host_problems("gpu-01", {wrong: 1}, SPECS) == [sentence]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llamacpp_gpus", 2),
        ("llamacpp_gpus", [0, "GPU-1"]),
        ("llamacpp_gpu_layers", "all"),
        ("llamacpp_gpu_layers", 20),
    ],
)
def test_every_form_that_the_plan_reads_is_accepted(name: str, value: Any) -> None:
    assert variables.host_problems("gpu-01", {name: value}, SPECS) == []


@pytest.mark.parametrize(("machine", "units"), [("cpu", []), ("h100", [MACHINES["h100"]["devices"][0]["uuid"]])])
def test_what_the_service_is_given(machine: str, units: list[str]) -> None:
    wishes = {"llamacpp_model": "qwen3-8b", "llamacpp_extra_args": ["--no-warmup"], "llamacpp_extra_env": {"A": "b"}}
    (service,) = plan_node(MACHINES[machine], {"host": "gpu-01", **wishes}, catalog())["services"]
    loader = DataLoader()
    (task,) = loader.load_from_file(str(ROOT / "roles/llamacpp/tasks/service.yml"), trusted_as_template=True)
    defaults = loader.load_from_file(str(ROOT / "roles/llamacpp/defaults/main.yml"))
    templar = Templar(loader, {**defaults, "__llamacpp_service": service})
    spec = ServiceSpec.from_params(templar.template(task["fleet.inference.container_service"]))
    assert list(spec.units or []) == units and spec.units is not None
    assert spec.command == ("--no-warmup",)
    assert spec.env == {**service["env"], "HOME": "/tmp"} and spec.env["A"] == "b"


def test_services_that_run_are_served_before_new_ones() -> None:
    """What moves away from a port or a GPU does so before a new service takes it."""
    names = ["new", "moves", "newer", "stays"]
    planned = [{"name": name, "backend": "llamacpp"} for name in names] + [{"name": "other", "backend": "vllm"}]
    loader = DataLoader()
    tasks = loader.load_from_file(str(ROOT / "roles/llamacpp/tasks/main.yml"), trusted_as_template=True)
    (serve,) = (task for task in tasks if task["name"] == "Serve")
    facts = {"gpu": {"services": [{"name": "stays"}, {"name": "moves"}, {"name": "gone"}]}}
    templar = Templar(loader, {**serve["vars"], "inference_plan": {"services": planned}, "ansible_facts": facts})
    assert [item["name"] for item in templar.template(serve["loop"])] == ["moves", "stays", "new", "newer"]
