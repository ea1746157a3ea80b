# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.filter.gateway import FilterModule
from gateway_samples import TWO_NODES, fragment

FILTERS = FilterModule().filters()


def test_configurations_come_from_fragments() -> None:
    assert "server gpu-01-llamacpp 10.0.0.11:8005 " in FILTERS["haproxy_config"](TWO_NODES, {})
    assert len(yaml.safe_load(FILTERS["litellm_config"](TWO_NODES, {}))["model_list"]) == 1
    assert FILTERS["gateway_fragment"]({"node": "n", "address": "10.0.0.1", "services": []})["node"] == "n"


def test_a_refusal_is_the_sentence_itself() -> None:
    with pytest.raises(AnsibleFilterError, match="The fragment of gpu-01 has the address"):
        FILTERS["haproxy_config"]([fragment("gpu-01", "a b")], {})


def test_an_image_is_named_by_digest_first_and_its_registry_rewritten() -> None:
    entry = {"repository": "ghcr.io/berriai/litellm", "tag": "v1.109.1", "digest": None}
    reference = FILTERS["image_reference"]
    assert reference(entry) == "ghcr.io/berriai/litellm:v1.109.1"
    assert reference(entry, {"ghcr.io": "10.1.2.3:5000"}) == "10.1.2.3:5000/berriai/litellm:v1.109.1"
    digest = "sha256:" + "a" * 64
    assert reference({**entry, "digest": digest}, {}) == f"ghcr.io/berriai/litellm@{digest}"
