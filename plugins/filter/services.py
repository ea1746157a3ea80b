# SPDX-License-Identifier: Apache-2.0
"""Filters of the daily verbs: which services, in which order, and what became of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.module_utils import verbs
from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import GatewayError, validate_fragments


def services_waves(wanted: Sequence[Any], fragments: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the waves in which services may be away, or raise with the sentence that says which fragment is wrong."""
    try:
        return verbs.waves(wanted, validate_fragments(fragments))
    except GatewayError as error:
        raise AnsibleFilterError(str(error)) from error


def services_last(wanted: Sequence[Any], fragments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the models that nothing serves without these services, or raise as ``services_waves`` does."""
    try:
        return verbs.last_servers(wanted, validate_fragments(fragments))
    except GatewayError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filters of the verbs."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "services_last": services_last,
            "services_problem": verbs.name_problem,
            "services_targets": verbs.targets,
            "services_waves": services_waves,
            "services_rows": verbs.rows,
            "services_table": verbs.lines,
        }
