# SPDX-License-Identifier: Apache-2.0
"""The sentences for wrong variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.preflight import variables

ROOT = Path(__file__).resolve().parents[3]
SPECS: dict[str, dict[str, Any]] = {
    "llamacpp_parallel": {"type": "int", "default": 4},
    "llamacpp_ctx_size": {"type": "int", "default": None},
    "llamacpp_threads": {"type": "int", "default": "{{ nothing }}"},
    "llamacpp_share": {"type": "float", "default": 0.9},
    "llamacpp_metrics": {"type": "bool", "default": True},
    "llamacpp_model": {"type": "str", "default": "small"},
    "inference_tier": {"type": "str", "choices": ["cuda", "cpu"]},
    "inference_backends": {"type": "list", "elements": "str", "default": []},
    "inference_services": {
        "type": "list",
        "elements": "dict",
        "options": {"backend": {"type": "str", "required": True}, "port": {"type": "int"}},
    },
    "gateway_port": {"type": "int", "default": 4000},
    "gateway_master_key": {"type": "str"},
    "gateway_secret_list": {"type": "list", "elements": "str"},
}


def problems(**values: Any) -> list[str]:
    return variables.host_problems("gpu-02", values, SPECS)


@pytest.mark.parametrize(
    "values",
    [
        {"llamacpp_parallel": 8},
        {"llamacpp_parallel": "8"},
        {"llamacpp_ctx_size": None},
        {"llamacpp_threads": None},
        {"llamacpp_share": 1},
        {"llamacpp_share": "0.5"},
        {"llamacpp_metrics": "yes"},
        {"llamacpp_model": 5},
        {"inference_tier": "cpu"},
        {"inference_tier": None},
        {"inference_services": [{"backend": "llamacpp", "port": "8010"}]},
    ],
)
def test_right(values: dict[str, Any]) -> None:
    assert problems(**values) == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"llamacpp_parallel": "many"}, "gpu-02: llamacpp_parallel is 'many' (text); give a whole number"),
        ({"llamacpp_parallel": True}, "gpu-02: llamacpp_parallel is True (true/false); give a whole number"),
        ({"llamacpp_parallel": 1.5}, "gpu-02: llamacpp_parallel is 1.5 (a decimal number); give a whole number"),
        ({"llamacpp_parallel": None}, "gpu-02: llamacpp_parallel is empty; give a whole number"),
        ({"llamacpp_parallel": [4]}, "gpu-02: llamacpp_parallel is a list; give a whole number"),
        ({"llamacpp_metrics": "maybe"}, "gpu-02: llamacpp_metrics is 'maybe' (text); give true or false"),
        ({"llamacpp_model": {"a": 1}}, "gpu-02: llamacpp_model is a mapping; give a text"),
        ({"inference_tier": "gpu"}, "gpu-02: inference_tier is 'gpu' (text); give one of cuda, cpu"),
        ({"inference_backends": "llamacpp"}, "gpu-02: inference_backends is 'llamacpp' (text); give a list of texts"),
        ({"inference_backends": [["a"]]}, "gpu-02: inference_backends[0] is a list; give a text"),
        ({"inference_backends": [None]}, "gpu-02: inference_backends[0] is empty; give a text"),
        (
            {"inference_services": [{"bakend": "x", "backend": "llamacpp"}]},
            "gpu-02: inference_services[0] has no key called bakend; did you mean backend?",
        ),
        ({"inference_services": [{"port": 1}]}, "gpu-02: inference_services[0] lacks backend; give a text"),
        (
            {"inference_services": [{"backend": "llamacpp", "port": "x"}]},
            "gpu-02: inference_services[0].port is 'x' (text); give a whole number",
        ),
        ({"llamacpp_paralel": 4}, "gpu-02: no variable is called llamacpp_paralel; did you mean llamacpp_parallel?"),
        (
            {"gateway_zzz": 4},
            "gpu-02: no variable is called gateway_zzz; remove it, or see the roles' README files for the known names",
        ),
        ({"gateway_master_key": ["sk-hidden"]}, "gpu-02: gateway_master_key is a list; give a text"),
        ({"gateway_secret_list": "sk-hidden"}, "gpu-02: gateway_secret_list is text; give a list of texts"),
    ],
)
def test_wrong(values: dict[str, Any], sentence: str) -> None:
    assert problems(**values) == [sentence]
    assert "sk-hidden" not in sentence


def test_all_problems_together() -> None:
    assert len(problems(llamacpp_parallel="many", gateway_port="x", inference_tiers="cpu")) == 3


def test_owned_names() -> None:
    names = ["inference_plan", "inference_tier", "__inference_x", "ansible_host", "llamacpp_port", "my_llamacpp_port"]
    assert variables.owned_names(names, ["inference_", "llamacpp_"]) == ["inference_tier", "llamacpp_port"]


def test_load_specs_of_this_project() -> None:
    options, prefixes = variables.load_specs(ROOT / "roles")
    assert {"inference_services", "container_runtime_source", "model_store_path"} <= set(options)
    assert {"inference_", "container_runtime_", "model_store_", "preflight_"} <= set(prefixes)
    for name, spec in options.items():
        default = spec.get("default")
        if default is not None and not (isinstance(default, str) and "{{" in default):
            assert variables.value_problems(name, default, spec) == []
