# SPDX-License-Identifier: Apache-2.0
"""A recommendation in words: what to paste into host_vars, why, and what would do better."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend_fleet import FleetRecommendation
from ansible_collections.fleet.inference.plugins.module_utils.text import LABEL_WIDTH, row, table

#: Longest line. Ansible puts four blanks before the lines of a message, which makes 120 columns of them.
WIDTH = 116

_HEAD = ("Name", "Backend", "Model", "Weights", "Runs on", "Context", "Parallel")


def node_lines(recommendation: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Return a node's recommendation for people: plain lines of at most ``WIDTH`` characters, without line ends.

    Args:
        recommendation: node, workload, services (as in ``inference_services``), why and better.
        plan: The plan of these services.
    """
    return [
        *row("Node", f"{recommendation['node']}, tier {plan['tier']}, workload {recommendation['workload']}"),
        *services_yaml(recommendation["services"]),
        *table([_HEAD, *(_cells(service) for service in plan["services"])], right=(5, 6)),
        *_sentences("Why", recommendation["why"]),
        *_sentences("Better", recommendation["better"]),
    ]


def fleet_lines(workload: str, found: FleetRecommendation) -> list[str]:
    """Return a fleet's recommendation for people, the nodes with the same services together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for node, recommendation in found["nodes"].items():
        alike.setdefault(tuple(services_yaml(recommendation["services"])), []).append(node)
    told = [f"Fleet of {len(found['nodes'])} nodes, workload {workload}: {found['common_model'] or 'no common model'}"]
    for services, nodes in alike.items():
        told += [*_wrapped(f"# {', '.join(nodes)}", "# "), *services]
    return [*told, *_sentences("Why", found["why"]), *_sentences("Better", found["better"])]


def services_yaml(services: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of ``inference_services`` in YAML."""
    if not services:
        return ["inference_services: []"]
    # Names of backends and models are plain words of YAML.
    entries = (", ".join(f"{key}: {value}" for key, value in service.items()) for service in services)
    return ["inference_services:", *(f"  - {{{entry}}}" for entry in entries)]


def _cells(service: Mapping[str, Any]) -> tuple[str, ...]:
    where = " + ".join(unit["title"] for unit in service["units"]) or "CPU"
    return (
        service["name"],
        service["backend"],
        service["model"],
        service["quantization"],
        textwrap.shorten(where, 40, placeholder=" …"),
        str(service["context_length"]),
        str(service["parallel"]),
    )


def _sentences(label: str, sentences: Sequence[str]) -> Iterator[str]:
    for number, sentence in enumerate(sentences):
        head = ("" if number else label).ljust(LABEL_WIDTH)
        for line_number, line in enumerate(_wrapped(f"- {sentence}", "  ", WIDTH - LABEL_WIDTH)):
            yield (" " * LABEL_WIDTH if line_number else head) + line


def _wrapped(text: str, indent: str, width: int = WIDTH) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
