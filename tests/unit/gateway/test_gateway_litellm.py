# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import yaml
from ansible_collections.fleet.inference.plugins.module_utils.gateway.litellm import image_problem, render_litellm
from ansible_collections.fleet.inference.plugins.module_utils.gateway.pools import pools
from gateway_samples import TWO_NODES, fragment, service


def test_one_deployment_a_pool_and_no_order_for_a_single_one() -> None:
    config = yaml.safe_load(render_litellm({"pool_port": 4999, "request_timeout_seconds": 60}, pools(TWO_NODES)))
    assert config["model_list"] == [
        {
            "model_name": "smollm2-135m-instruct",
            "litellm_params": {
                "model": "openai/smollm2-135m-instruct",
                "api_base": "http://fleet-gateway:4999/pool/smollm2-135m-instruct--llamacpp/v1",
                "api_key": "none",
            },
            "model_info": {"id": "smollm2-135m-instruct--llamacpp", "mode": "chat", "max_input_tokens": 2048},
        }
    ]
    assert config["router_settings"]["timeout"] == config["litellm_settings"]["request_timeout"] == 60
    assert config["general_settings"]["master_key"] == "os.environ/LITELLM_MASTER_KEY"


def test_an_empty_registry_has_a_configuration() -> None:
    assert yaml.safe_load(render_litellm({}, []))["model_list"] == []


def test_several_backends_of_a_model_have_a_stable_order() -> None:
    node = fragment(
        "a",
        "10.0.0.1",
        service("ollama", backend="ollama"),
        service("llamacpp"),
        service("zeta", backend="zeta"),
        service("vllm", backend="vllm", context_length=None),
    )
    deployments = yaml.safe_load(render_litellm({}, pools([node])))["model_list"]
    assert [(item["model_info"]["id"].split("--")[1], item["litellm_params"]["order"]) for item in deployments] == [
        ("vllm", 1),
        ("llamacpp", 2),
        ("ollama", 3),
        ("zeta", 4),
    ]
    assert "max_input_tokens" not in deployments[0]["model_info"]


def test_draining_or_adding_a_node_changes_nothing() -> None:
    before = render_litellm({}, pools([fragment("gpu-01", "10.0.0.11")]))
    assert render_litellm({}, pools(TWO_NODES)) == before


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"tag": "v1.107.0"}, "credential stealer"),
        ({"tag": "1.82.7"}, "credential stealer"),
        ({"tag": "v1.82.8-stable"}, "credential stealer"),
        (
            {
                "tag": None,
                "digest": "sha256:1bbcb1443bc962e45f5aad53fe3d2c30600e0379715fb6c664cdd3ac126c339e",
            },
            "credential stealer",
        ),
        ({"tag": "v1.99.0", "denied": ["1.99.0"]}, "must not run"),
        ({"tag": "v1.82.9", "minimum_version": "1.83.0"}, "below 1.83.0"),
        ({"tag": "main-stable"}, "moves"),
        ({"tag": ""}, "moves"),
    ],
)
def test_dangerous_images_are_refused(entry: dict[str, Any], words: str) -> None:
    message = image_problem(entry)
    assert message is not None
    assert words in message and "v1.109.1" in message


@pytest.mark.parametrize(
    "entry", [{"tag": "v1.109.1"}, {"tag": "1.108.12"}, {"tag": "latest", "digest": "sha256:" + "0" * 64}]
)
def test_other_images_are_taken(entry: dict[str, str]) -> None:
    assert image_problem(entry) is None
