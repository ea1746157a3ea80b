# SPDX-License-Identifier: Apache-2.0
"""The parts of the plan: image references, memory formulas, the catalog's files, and the filter and the action."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.filter.plan import FilterModule
from ansible_collections.fleet.inference.plugins.module_utils.planning import images, plan_node, sizing
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Catalog
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Demand, Request, Setting
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import size_text, suggestion_text
from ansible_collections.fleet.inference.plugins.module_utils.planning.plan import BACKENDS
from planning_machines import MACHINES, MIB, ROOT, catalog, facts

CATALOG = catalog()
LLAMACPP = BACKENDS["llamacpp"]
CONTEXT = 4096


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("ghcr.io/ggml-org/llama.cpp", ("ghcr.io", "ggml-org/llama.cpp")),
        ("localhost/x", ("localhost", "x")),
        ("registry:5000/a/b", ("registry:5000", "a/b")),
        ("ollama/ollama", ("docker.io", "ollama/ollama")),
        ("debian", ("docker.io", "library/debian")),
    ],
)
def test_split_repository(repository, expected):
    assert images.split_repository(repository) == expected


def test_image_reference():
    assert images.image_reference("ollama/ollama", "1", None, {}) == "docker.io/ollama/ollama:1"
    assert images.image_reference("ghcr.io/a/b", "1", None, {"ghcr.io": "r:5000/mirror/"}) == "r:5000/mirror/a/b:1"
    digest = f"sha256:{'a' * 64}"
    assert images.image_reference("ghcr.io/a/b", "1", digest, {}) == f"ghcr.io/a/b@{digest}"
    with pytest.raises(ValueError, match="digest"):
        images.image_reference("ghcr.io/a/b", "1", "sha256:abc", {})
    with pytest.raises(ValueError, match="tag"):
        images.image_reference("ghcr.io/a/b", "a b", None, {})


@pytest.mark.parametrize(
    ("tag", "denied"),
    [("v1.82.7", True), ("1.82.8", True), ("v1.82.7-stable", True), ("v1.107.0.rc1", True), ("v1.82.70", False)],
)
def test_denied(tag, denied):
    assert images.is_denied(tag, ["1.82.7", "1.82.8", "1.107.0"]) is denied


def test_litellm_is_not_a_denied_version():
    entry = CATALOG["engines"]["litellm"]
    assert not images.is_denied(entry["tag"], entry["denied"])
    assert {"1.82.7", "1.82.8", "1.107.0"} <= set(entry["denied"])


# KiB a token at 16 bits, from the models' published numbers.
@pytest.mark.parametrize(
    ("model", "kib"),
    [
        ("llama-3.1-8b-instruct", 128),
        ("qwen2.5-coder-7b-instruct", 56),
        ("qwen3-0.6b", 112),
        ("qwen3-4b", 144),
        ("qwen3-8b", 144),
        ("qwen3-14b", 160),
        ("qwen3-30b-a3b", 96),
        ("qwen3-32b", 256),
        ("smollm2-135m-instruct", 22.5),
    ],
)
def test_kv_bytes_a_token(model, kib):
    sizes = {kind: need(model, kv_cache_type=kind).kv_cache for kind in LLAMACPP.kv_cache_types}
    assert sizes == {
        "f16": kib * 1024 * CONTEXT,
        "q8_0": kib * 1024 * CONTEXT * 1.0625 / 2,
        "q4_0": kib * 1024 * CONTEXT * 0.5625 / 2,
    }


def need(name: str, context: int = CONTEXT, units: int = 1, kv_cache_type: str = "f16") -> Demand:
    """What llama.cpp takes for one slot of a model in its smallest file."""
    model = Catalog("h", CATALOG).model(name, "model")
    artifacts = LLAMACPP.artifacts(model)
    request = Request("llamacpp", model, artifacts, units, kv_cache_type=kv_cache_type)
    return LLAMACPP.demand(request, Setting(artifacts[-1], context, 1))


def test_gpu_overhead_is_between_half_and_one_gibibyte():
    for name in (name for name, entry in CATALOG["models"].items() if entry.get("gguf")):
        assert 512 * MIB <= need(name).overhead <= 1024 * MIB, name


def test_context_is_counted_in_steps():
    assert need("qwen3-8b", 512).kv_cache == need("qwen3-8b", 300).kv_cache > need("qwen3-8b", 256).kv_cache


def test_readiness_and_limit():
    assert sizing.readiness_timeout_seconds(5_027_783_488) == 171
    assert sizing.memory_limit(1000 * MIB) == 1100 * MIB
    assert sizing.memory_limit(1) == MIB


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1 MiB"), (98_362_432, "94 MiB"), (1024**3, "1.0 GiB"), (5_027_783_488, "4.7 GiB")]
)
def test_size_text(number, text):
    assert size_text(number) == text


def test_the_catalog_is_whole_and_exact():
    book = Catalog("h", CATALOG)
    assert book.backends == ["llamacpp", "ollama", "sglang", "vllm"]
    for name in book.model_names:
        model = book.model(name, "model")
        assert CATALOG["models"][name]["licence"]
        for file in model.gguf:
            for part in file.parts or (file,):
                # A revision in the address: a branch could bring other bytes tomorrow.
                assert "url" not in part.source or re.search(r"/resolve/[0-9a-f]{40}/", part.source["url"])
                assert "url" not in part.source or part.source["url"].endswith(f"/{part.file}")
            bits = file.size_bytes * 8 / model.parameters
            assert 4 < bits < 9, name
        sizes = [file.size_bytes for file in model.gguf]
        assert sizes == sorted(sizes, reverse=True)
    tags = {variant.tag for variant in book.engine("llamacpp").variants}
    assert len({tag.rsplit("-", 1)[1] for tag in tags}) == 1, "all images are of one build"


def test_a_short_list_of_choices_is_whole_and_a_long_one_shows_the_nearest():
    assert suggestion_text("b", ["c", "a"], "known") == "known: a, c"
    names = [f"model-{number}" for number in range(10)]
    assert (
        suggestion_text("model-42", names[:8], "known", "x") == f"did you mean model-4? known: {', '.join(names[:8])}"
    )
    text = suggestion_text("Owner/Model-4", names, "known", "inference_models")
    assert text.startswith("did you mean model-4? known: model-4, ")
    assert text.endswith(" and 2 more in inference_models")
    assert text.count("model-") == 9
    # Where the sentence is the only place that has them, all are there.
    assert suggestion_text("model-42", names, "known").endswith(f"known: {', '.join(names)}")


def test_filter():
    run = FilterModule().filters()["plan"]
    wishes = {"host": "gpu-01", "llamacpp_model": "qwen3-8b"}
    assert run(MACHINES["h100"], wishes, CATALOG) == plan_node(MACHINES["h100"], wishes, CATALOG)
    with pytest.raises(AnsibleFilterError, match="gpu-01: llamacpp_parallel is 'x'"):
        run(MACHINES["h100"], {**wishes, "llamacpp_parallel": "x"}, CATALOG)
    with pytest.raises(AnsibleFilterError, match="wishes of the filter"):
        run(MACHINES["h100"], None, CATALOG)


def play(tmp_path: Path, variables: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """Run one task on a host that cannot be reached, in check mode, and return its result."""
    inventory = {"all": {"hosts": {"gpu-90": {"ansible_host": "192.0.2.11", **variables}}}}
    steps = [
        {"ansible.builtin.set_fact": {"gpu": facts(), "cacheable": True}},
        {"name": "Plan", "register": "outcome", "failed_when": False, **task},
        {
            "ansible.builtin.copy": {
                "content": "{{ {'outcome': outcome, 'fact': ansible_facts.inference_plan | default(none)} | to_json }}",
                "dest": str(tmp_path / "out.json"),
                "mode": "0600",
            },
            "delegate_to": "localhost",
            "check_mode": False,
            "vars": {"ansible_python_interpreter": sys.executable},
        },
    ]
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
    book = [{"hosts": "all", "gather_facts": False, "tasks": steps}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(book), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "--check",
        "-i",
        str(tmp_path / "inventory.yml"),
        *[item for name in ("models", "engines") for item in ("-e", f"@{ROOT}/group_vars/all/{name}.yml")],
        str(tmp_path / "play.yml"),
    ]
    # The project's fact cache is not this test's to read or to write.
    environment = {**os.environ, "ANSIBLE_CACHE_PLUGIN": "memory"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))


def test_action_plans_from_facts_and_templated_variables(tmp_path):
    variables = {"size": "0.6b", "llamacpp_model": "qwen3-{{ size }}", "llamacpp_parallel": "{{ 1 + 1 }}"}
    result = play(tmp_path, variables, {"fleet.inference.plan": {}})
    wishes = {
        "host": "gpu-90",
        "ansible_host": "192.0.2.11",
        "llamacpp_model": "qwen3-0.6b",
        "llamacpp_parallel": 2,
    }
    expected = plan_node(facts(), wishes, CATALOG)
    assert result["outcome"]["plan"] == result["fact"] == expected
    assert result["outcome"]["changed"] is False


def test_action_fails_with_the_sentence_and_nothing_else(tmp_path):
    result = play(tmp_path, {"llamacpp_model": "qwen3-0.6b", "llamacpp_parallel": "many"}, {"fleet.inference.plan": {}})
    assert result["outcome"]["msg"] == "gpu-90: llamacpp_parallel is 'many'; give a whole number of at least 1"
    assert "plan" not in result["outcome"]
    assert result["fact"] is None


def test_action_names_the_variable_whose_template_fails(tmp_path):
    result = play(tmp_path, {"llamacpp_model": "{{ nowhere }}"}, {"fleet.inference.plan": {}})
    assert re.fullmatch(
        r"gpu-90: llamacpp_model has no value \(.*'nowhere' is undefined\); correct its template",
        result["outcome"]["msg"],
    )


def test_action_takes_given_facts_and_variables(tmp_path):
    given = {"facts": MACHINES["h100"], "variables": {"llamacpp_model": "qwen3-8b"}}
    given["variables"] |= {f"inference_{key}": value for key, value in CATALOG.items()}
    result = play(tmp_path, {"llamacpp_model": "other"}, {"fleet.inference.plan": given})
    assert result["outcome"]["plan"]["services"][0]["variant"] == "cuda"
