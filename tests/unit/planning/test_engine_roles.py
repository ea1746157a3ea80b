# SPDX-License-Identifier: Apache-2.0
"""The backends' roles know what the plan reads, and hand on to the container what the plan decides."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.fleet.inference.plugins.filter.service_options import service_options as option_filter
from ansible_collections.fleet.inference.plugins.module_utils.planning import plan_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.backends import BACKENDS
from ansible_collections.fleet.inference.plugins.module_utils.planning.engine_service import (
    CONTAINERS,
    service_options,
    service_steps,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import VARIABLES
from ansible_collections.fleet.inference.plugins.module_utils.preflight import variables
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import ServiceSpec
from planning_machines import GIB, MACHINES, ROOT, catalog, device, gpu_facts

SPECS, _ = variables.load_specs(ROOT / "roles")
READ = sorted(name for name in VARIABLES if name.partition("_")[0] in BACKENDS)
USERS = {"llamacpp": "10001:10001", "ollama": "10001:10001", "sglang": "10001:10001", "vllm": "2000:0"}
CPU = {**MACHINES["cpu"], "cpu": {"architecture": "x86_64", "cores": 16, "flags": ["avx2", "avx512f"]}}
CPU["memory_total_bytes"] = 128 * GIB
TWO = gpu_facts(
    "cuda",
    [device("NVIDIA H100 80GB HBM3", 81559, "9.0", index=index) for index in range(2)],
    memory_total_bytes=256 * GIB,
)
HUB = {"source": "/srv/models/huggingface", "target": "/models/huggingface", "read_only": True}


def planned(facts: dict[str, Any], *services: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    listed = [{"model": "qwen3-8b", **service} for service in services]
    return plan_node(facts, {"host": "gpu-01", "inference_services": listed, **wishes}, catalog())


def options(plan: dict[str, Any], facts: dict[str, Any], name: str) -> dict[str, Any]:
    user = next(USERS[item["backend"]] for item in plan["services"] if item["name"] == name)
    return service_options(name, plan, facts, user=user, models_path="/srv/models", state_root="/srv/state")


def cache(options: dict[str, Any]) -> str | None:
    return next((item["source"] for item in options["mounts"] if item["target"] == "/cache"), None)


def test_every_backend_has_a_role_and_a_container() -> None:
    assert set(CONTAINERS) == set(BACKENDS)
    assert all((ROOT / "roles" / backend / "tasks/main.yml").exists() for backend in BACKENDS)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_the_plan_reads_variables_of_the_role(backend: str) -> None:
    """Which of them is the container's, and not the plan's, is named here."""
    read = {name for name in READ if name.startswith(f"{backend}_")}
    assert {name for name in SPECS if name.startswith(f"{backend}_")} == {*read, f"{backend}_user"}
    types = next(SPECS[name]["choices"] for name in read if "kv_cache" in name)
    assert tuple(types) == BACKENDS[backend].kv_cache_types
    assert SPECS[f"{backend}_user"]["default"] == USERS[backend]


@pytest.mark.parametrize("name", READ)
def test_a_wrong_name_is_answered_with_the_right_one(name: str) -> None:
    wrong = name[:-2] + name[-1]
    sentence = f"gpu-01: no variable is called {wrong}; did you mean {name}?"
    assert variables.host_problems("gpu-01", {wrong: 1}, SPECS) == [sentence]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("llamacpp_gpus", 2),
        ("vllm_gpus", [0, "GPU-1"]),
        ("llamacpp_gpu_layers", "all"),
        ("ollama_gpu_layers", 20),
        ("vllm_gpu_memory_utilization", 0.9),
        ("sglang_mem_fraction_static", "0.88"),
        ("vllm_max_model_len", 32768),
    ],
)
def test_every_form_that_the_plan_reads_is_accepted(name: str, value: Any) -> None:
    assert variables.host_problems("gpu-01", {name: value}, SPECS) == []


def templar_with(values: dict[str, Any]) -> Templar:
    """Return a templar that knows the filters which the roles use."""
    templar = Templar(DataLoader(), values)
    templar.environment.filters["fleet.inference.service_options"] = option_filter
    templar.environment.filters["fleet.inference.service_steps"] = service_steps
    return templar


def template(backend: str, plan: dict[str, Any], facts: dict[str, Any], **more: Any) -> tuple[Templar, dict[str, Any]]:
    """Return a templar with what the role engine_service has when the role of a backend includes it."""
    loader = DataLoader()

    def load(path: str) -> Any:
        return loader.load_from_file(str(ROOT / "roles" / path), trusted_as_template=True)

    (include,) = load(f"{backend}/tasks/main.yml")
    assert include["ansible.builtin.include_role"]["name"] == "fleet.inference.engine_service"
    values = {
        **load("engine_service/defaults/main.yml"),
        **load("engine_service/vars/main.yml"),
        **load(f"{backend}/defaults/main.yml"),
        **include["vars"],
        "inference_plan": plan,
        "ansible_facts": {"gpu": facts},
        **more,
    }
    tasks = {task["name"]: task for task in load("engine_service/tasks/main.yml")}
    return templar_with(values), tasks


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("machine", ["cpu", "h100"])
def test_the_role_hands_on_what_the_plan_decides(backend: str, machine: str) -> None:
    facts = CPU if machine == "cpu" else MACHINES["h100"]
    plan = planned(facts, {"backend": backend, "model": "qwen3-0.6b"}, **{f"{backend}_env": {"A": "b"}})
    templar, tasks = template(backend, plan, facts, inference_models_path="/srv/models")
    assert templar.template(tasks["Remove services that the plan no longer names"]["loop"]) == []
    (wanted,) = templar.template(tasks["Serve"]["loop"])
    (task,) = DataLoader().load_from_file(
        str(ROOT / "roles/engine_service/tasks/service.yml"), trusted_as_template=True
    )
    arguments = task["fleet.inference.container_service"]
    templar.available_variables = {**templar.available_variables, "__engine_service": wanted, "omit": None}
    spec = ServiceSpec.from_params(templar.template(arguments))
    (service,) = plan["services"]
    # Every option of the container has a line in the task.
    assert set(wanted) | {"config_root", "state_root"} == set(arguments)
    assert list(spec.units or []) == [unit["identity"] for unit in service["units"]] and spec.units is not None
    assert spec.command == tuple(service["arguments"])
    assert {**spec.env, **service["env"]} == spec.env and spec.env["A"] == "b"
    assert spec.shm_size_bytes == (service["shared_memory_bytes"] or None)
    assert spec.readiness is not None and spec.readiness.model == "qwen3-0.6b"
    assert spec.user == USERS[backend] and spec.read_only
    assert len(spec.start_locks) == len(service["units"])
    assert [port.published() for port in spec.ports] == [
        f"{service['address']}:{service['port']}:{service['container_port']}"
    ]


def test_what_vllm_is_given() -> None:
    plan = planned(TWO, {"backend": "vllm", "gpus": 2})
    given = options(plan, TWO, "vllm")
    assert given["mounts"] == [
        HUB,
        {
            "source": "/srv/state/caches/vllm/cuda-v0.33.0-9.0",
            "target": "/cache",
            "read_only": False,
            "owner": "2000:0",
        },
    ]
    env = given["env"]
    # Nothing that is written lies elsewhere, and nothing is downloaded.
    kept = {name: value for name, value in env.items() if value.startswith("/")}
    assert kept.pop("HF_HUB_CACHE") == "/models/huggingface"
    assert all(value == "/cache" or value.startswith("/cache/") for value in kept.values()), kept
    assert {"HOME", "CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT"} <= set(kept)
    assert env["HF_HUB_OFFLINE"] == "1" and env["USER"] == "inference"
    # Requests have 60 s to finish, and the workers 30 s to go.
    assert given["command"][given["command"].index("--shutdown-timeout") + 1] == "60"
    assert (given["stop_timeout_seconds"], given["idle_timeout_seconds"]) == (90, 0)
    assert given["shm_size_bytes"] == plan["services"][0]["shared_memory_bytes"] > GIB
    assert len(given["devices"]) == 2
    assert given["readiness"]["generate_path"] == "/v1/chat/completions"
    assert given["readiness"]["generate_body"]["max_tokens"] == 1
    assert given["readiness"]["timeout_seconds"] == plan["services"][0]["readiness_timeout_seconds"]


def test_what_sglang_is_given() -> None:
    plan = planned(TWO, {"backend": "sglang"})
    given = options(plan, TWO, "sglang")
    assert given["mounts"][0] == HUB and cache(given) == "/srv/state/caches/sglang/cuda-v0.5.23-runtime-9.0"
    assert given["stop_timeout_seconds"] == 120
    # The gateways ask /health twice a second: it must not generate a token each time.
    assert given["env"]["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "false"
    assert given["readiness"]["health_path"] == "/health"
    assert "--enable-metrics" in given["command"]


def test_what_llamacpp_is_given() -> None:
    plan = planned(CPU, {"backend": "llamacpp"})
    given = options(plan, CPU, "llamacpp")
    # It would cut its requests when it is told to end.
    assert (given["stop_timeout_seconds"], given["idle_timeout_seconds"]) == (10, 120)
    (file,) = plan["models"]
    folder = file["path"].rpartition("/")[0]
    assert given["mounts"] == [{"source": folder, "target": "/models", "read_only": True}]
    assert (given["env"]["HOME"], given["tmpfs"], given["shm_size_bytes"]) == ("/tmp", ["/tmp"], None)
    on_gpu = options(planned(MACHINES["t4"], {"backend": "llamacpp"}), MACHINES["t4"], "llamacpp")
    assert cache(on_gpu) == "/srv/state/caches/llamacpp/cuda-server-cuda-b11669-7.5"
    assert on_gpu["env"]["CUDA_CACHE_PATH"] == "/cache/cuda"
    assert int(on_gpu["env"]["CUDA_CACHE_MAXSIZE"]) == 4 * GIB


def test_what_ollama_is_given_from_its_library() -> None:
    facts = MACHINES["h100"]
    plan = planned(facts, {"backend": "ollama"})
    assert plan["services"][0]["model_file"] is None
    given = options(plan, facts, "ollama")
    assert given["mounts"][0] == {"source": "/srv/models/ollama", "target": "/models/ollama", "read_only": True}
    assert given["env"]["OLLAMA_MODELS"] == "/models/ollama" and given["env"]["OLLAMA_NOPRUNE"] == "1"
    readiness = given["readiness"]
    assert (readiness["models_path"], readiness["gpu_path"], readiness["gpu_whole"]) == ("/api/tags", "/api/ps", True)
    # Ollama gives up loading when the one who asked goes away.
    assert readiness["request_timeout_seconds"] == readiness["timeout_seconds"]


def test_what_ollama_is_given_from_a_file() -> None:
    """A store of one model, whose weights are the file itself; Ollama's own names and layout."""
    facts = MACHINES["h100"]
    book = catalog()
    del book["models"]["qwen3-8b"]["ollama"]
    wishes = {"host": "gpu-01", "inference_services": [{"backend": "ollama", "model": "qwen3-8b"}]}
    plan = plan_node(facts, wishes, book)
    file = plan["services"][0]["model_file"]
    given = options(plan, facts, "ollama")
    blob = f"/models/ollama/blobs/sha256-{file['sha256']}"
    assert given["mounts"][0] == {"source": file["path"], "target": blob, "read_only": True}
    manifest, config = given["files"]
    assert manifest["target"] == "/models/ollama/manifests/registry.ollama.ai/library/qwen3-8b/latest"
    found = json.loads(manifest["content"])
    digest = hashlib.sha256(config["content"].encode()).hexdigest()
    assert config["target"] == f"/models/ollama/blobs/sha256-{digest}"
    assert found["config"]["digest"] == f"sha256:{digest}" and found["config"]["size"] == len(config["content"])
    assert found["layers"] == [
        {
            "mediaType": "application/vnd.ollama.image.model",
            "digest": f"sha256:{file['sha256']}",
            "size": file["size_bytes"],
        }
    ]
    assert json.loads(config["content"])["model_format"] == "gguf"
    # The module takes all of it, and whoever the container runs as may read the files.
    changes = {"readiness": None, "name": "ollama"}
    spec = ServiceSpec.from_params({**given, **changes})
    assert [item.mode for item in spec.files] == [0o644, 0o644]
    assert options(planned(facts, {"backend": "ollama"}), facts, "ollama")["files"] == []


@pytest.mark.parametrize(
    ("facts", "layers", "asked"),
    [
        (MACHINES["h100"], None, (True, True)),
        (MACHINES["h100"], 10, (True, False)),
        (MACHINES["h100"], 0, (False, None)),
        (CPU, None, (False, None)),
    ],
)
def test_ollama_is_asked_for_what_was_planned_on_gpus(facts: dict[str, Any], layers: int | None, asked: Any) -> None:
    service = {"backend": "ollama"} if layers is None else {"backend": "ollama", "gpu_layers": layers}
    readiness = options(planned(facts, service), facts, "ollama")["readiness"]
    assert ("gpu_path" in readiness, readiness.get("gpu_whole")) == asked


def test_caches_are_of_one_image_and_one_architecture() -> None:
    digest = "sha256:" + "ab" * 32
    plan = planned(MACHINES["h100"], {"backend": "vllm"})
    tagged = cache(options(plan, MACHINES["h100"], "vllm"))
    plan["services"][0]["image"] += f"@{digest}"
    pinned = cache(options(plan, MACHINES["h100"], "vllm"))
    assert pinned == f"/srv/state/caches/vllm/cuda-{'ab' * 16}-9.0" != tagged
    on_cpu = planned(CPU, {"backend": "vllm", "model": "qwen3-0.6b"})
    assert cache(options(on_cpu, CPU, "vllm")) == "/srv/state/caches/vllm/cpu-v0.33.0-x86_64-x86_64"
    amd = MACHINES["mi300x"]
    assert cache(options(planned(amd, {"backend": "vllm"}), amd, "vllm")) == (
        "/srv/state/caches/vllm/rocm-v0.33.0-gfx942"
    )
    part = MACHINES["h100-mig"]
    assert str(cache(options(planned(part, {"backend": "llamacpp"}), part, "llamacpp"))).endswith("-9.0")


def test_services_on_one_gpu_start_in_the_order_of_the_plan() -> None:
    facts = MACHINES["h100"]
    models = {"ollama": "qwen3-0.6b", "llamacpp": "qwen3-0.6b", "vllm": "qwen3-0.6b"}
    plan = planned(facts, *({"backend": backend, "model": model} for backend, model in models.items()))
    assert plan["start_order"] == ["vllm", "llamacpp", "ollama"]
    after = {name: options(plan, facts, name)["start_after"] for name in models}
    assert after == {
        "vllm": [],
        "llamacpp": ["inference-vllm.service"],
        "ollama": ["inference-vllm.service", "inference-llamacpp.service"],
    }
    apart = planned(TWO, {"backend": "vllm", "gpus": [0]}, {"backend": "llamacpp", "gpus": [1]})
    assert options(apart, TWO, "llamacpp")["start_after"] == []
    on_cpu = planned(CPU, {"backend": "llamacpp"}, {"backend": "ollama"})
    assert [options(on_cpu, CPU, name)["start_after"] for name in ("llamacpp", "ollama")] == [[], []]


def test_services_that_run_are_served_before_new_ones() -> None:
    """What moves away from a port or a GPU does so before a new service takes it; what goes leaves first of all."""
    backends = {"new": "llamacpp", "moves": "llamacpp", "fresh": "vllm", "stays": "vllm"}
    plan = {
        "services": [{"name": name, "backend": backend} for name, backend in backends.items()],
        "start_order": ["stays", "fresh", "moves", "new"],
    }
    there = {"stays": "vllm", "moves": "llamacpp", "gone": "llamacpp", "old": "ollama", "proxy": "litellm"}
    running = [{"name": name, "backend": backend} for name, backend in there.items()]
    assert service_steps(plan, running) == [
        {"backend": "llamacpp", "remove": ["gone"], "serve": []},
        {"backend": "ollama", "remove": ["old"], "serve": []},
        {"backend": "vllm", "remove": [], "serve": ["stays"]},
        {"backend": "llamacpp", "remove": [], "serve": ["moves"]},
        {"backend": "vllm", "remove": [], "serve": ["fresh"]},
        {"backend": "llamacpp", "remove": [], "serve": ["new"]},
    ]
    # Another backend under the same name is a change of the service.
    running = [{"name": "stays", "backend": "ollama"}]
    assert [step for step in service_steps(plan, running) if step["remove"]] == []
    assert service_steps(plan, running)[0]["serve"] == ["stays", "fresh"]


def test_a_role_does_the_steps_of_its_backend() -> None:
    plan = planned(CPU, {"backend": "llamacpp"}, {"backend": "ollama"})
    facts = {**CPU, "services": [{"name": "gone", "backend": "ollama"}, {"name": "old", "backend": "llamacpp"}]}

    def does(backend: str, **more: Any) -> tuple[list[str], list[str]]:
        templar, tasks = template(backend, plan, facts, **more)
        removed = templar.template(tasks["Remove services that the plan no longer names"]["loop"])
        return removed, [item["name"] for item in templar.template(tasks["Serve"]["loop"])]

    assert does("llamacpp") == (["old"], ["llamacpp"])
    assert does("ollama") == (["gone"], ["ollama"])
    assert does("vllm") == ([], [])
    only = [{"backend": "ollama", "remove": ["gone"], "serve": []}]
    assert does("ollama", engine_service_steps=only) == (["gone"], [])
    assert does("llamacpp", engine_service_steps=only) == ([], [])


def test_site_serves_every_backend_in_its_order() -> None:
    loader = DataLoader()
    plays = loader.load_from_file(str(ROOT / "playbooks/site.yml"), trusted_as_template=True)
    tasks = [task for play in plays for task in play.get("tasks") or []]
    (serve,) = [task for task in tasks if task["name"] == "Serve"]
    plan = planned(CPU, {"backend": "llamacpp"}, {"backend": "ollama"})
    facts = {**CPU, "services": [{"name": "old", "backend": "sglang"}]}
    templar = templar_with({"inference_plan": plan, "ansible_facts": {"gpu": facts}})
    steps = templar.template(serve["loop"])
    included = []
    for step in steps:
        templar.available_variables = {"__site_step": step}
        included.append(templar.template(serve["ansible.builtin.include_role"]["name"]))
        assert templar.template(serve["vars"]["engine_service_steps"]) == [step]
    assert included == [f"fleet.inference.{name}" for name in ("sglang", *plan["start_order"])]


def test_a_name_that_the_plan_does_not_have() -> None:
    plan = planned(CPU, {"backend": "llamacpp"})
    with pytest.raises(
        AnsibleFilterError, match=r"^gpu-01: 'lamacpp' is no service of the plan; did you mean llamacpp"
    ):
        option_filter("lamacpp", plan, CPU, user="1:1", models_path="/m", state_root="/s")


def test_nothing_secret_is_in_the_options() -> None:
    """Keys are the gateway's; the options go to logs and diffs."""
    plan = planned(MACHINES["h100"], {"backend": "vllm"})
    assert "TOKEN" not in json.dumps(options(plan, MACHINES["h100"], "vllm")).replace("TOKENIZERS", "")
