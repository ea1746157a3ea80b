# SPDX-License-Identifier: Apache-2.0
"""Filters that turn plans into fragments and fragments into the gateway's configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.module_utils.gateway import fragments as fragments_module
from ansible_collections.fleet.inference.plugins.module_utils.gateway.haproxy import render_haproxy
from ansible_collections.fleet.inference.plugins.module_utils.gateway.litellm import render_litellm
from ansible_collections.fleet.inference.plugins.module_utils.gateway.pools import pools
from ansible_collections.fleet.inference.plugins.module_utils.gateway.settings import problem
from ansible_collections.fleet.inference.plugins.module_utils.planning import images


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the refusals of the logic into filter errors: one sentence, no traceback."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, KeyError) as error:
            raise AnsibleFilterError(str(error)) from None

    return wrapped


def gateway_fragment(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fragment that publishes a node's plan."""
    return fragments_module.fragment_from_plan(plan)


def haproxy_config(fragments: Sequence[Any], settings: Mapping[str, Any]) -> str:
    """Return haproxy.cfg for all fragments of the registry."""
    return render_haproxy(settings, pools(fragments))


def litellm_config(fragments: Sequence[Any], settings: Mapping[str, Any]) -> str:
    """Return LiteLLM's config.yaml for all fragments of the registry."""
    return render_litellm(settings, pools(fragments))


def gateway_problem(
    settings: Mapping[str, Any], image: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> str | None:
    """Return one sentence that says why the gateway can not be set up like this, or None."""
    return problem(settings, image, facts)


def image_reference(entry: Mapping[str, Any], registries: Mapping[str, str] | None = None) -> str:
    """Return the image to pull for an entry of the version table."""
    return images.image_reference(
        str(entry["repository"]), str(entry.get("tag") or ""), entry.get("digest"), registries or {}
    )


class FilterModule:
    """The gateway's filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "gateway_fragment": _told(gateway_fragment),
            "haproxy_config": _told(haproxy_config),
            "litellm_config": _told(litellm_config),
            "gateway_problem": _told(gateway_problem),
            "image_reference": _told(image_reference),
        }
