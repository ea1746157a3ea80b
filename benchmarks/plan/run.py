#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure what plans cost, and print it as a table.

One node with eight GPUs and four services, fleets of such nodes, and nodes whose services are recommended.

Needs the controller's Python environment. Nothing is read but the catalog; the machines are the tests' own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / ".collections"), str(PROJECT / "tests/unit/planning")]

from ansible_collections.fleet.inference.plugins.module_utils.planning import plan_node  # noqa: E402
from ansible_collections.fleet.inference.plugins.module_utils.planning.workloads import WORKLOADS  # noqa: E402
from planning_machines import GIB, MACHINES, catalog, device, gpu_facts  # noqa: E402

GOAL_NODE_MS, GOAL_FLEET_SECONDS, GOAL_FLEET_NODES = 20, 60, 10_000
GOAL_RECOMMENDATION_MS = 300
DRIVER = {"version": "580.95.05", "cuda_version": "13.0", "reboot_required": False}
GPUS = [device("NVIDIA H100 80GB HBM3", 81559, "9.0", index=index) for index in range(8)]
NODE = gpu_facts("cuda", GPUS, memory_total_bytes=2000 * GIB, driver=DRIVER)
SERVICES = [
    {"backend": "vllm", "model": "llama-3.3-70b-instruct"},
    {"backend": "sglang", "model": "qwen3-32b"},
    {"backend": "ollama", "model": "qwen3-8b"},
    {"backend": "llamacpp", "model": "qwen3-4b"},
]


def fleet(count: int, book: dict[str, Any]) -> float:
    """Return the seconds that plans of so many nodes take on one core."""
    started = time.process_time()
    for number in range(count):
        plan_node(NODE, {"host": f"gpu-{number:05d}", "inference_services": SERVICES}, book)
    return time.process_time() - started


def recommendation(node: dict[str, Any], workload: str, book: dict[str, Any]) -> float:
    """Return the milliseconds of a plan whose services are recommended."""
    started = time.process_time()
    plan_node(node, {"host": "h", "inference_services": "auto", "inference_workload": workload}, book)
    return (time.process_time() - started) * 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="plans of the one node (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1000, help="size of the small fleet (default: %(default)s)")
    arguments = parser.parse_args()
    book = catalog()
    once = [fleet(1, book) * 1000 for _ in range(arguments.rounds)]
    small, large = fleet(arguments.nodes, book), fleet(arguments.nodes * 4, book)
    whole = large / (arguments.nodes * 4) * GOAL_FLEET_NODES
    print(f"8 GPUs, 4 services          {statistics.median(once):8.1f} ms a plan (goal: under {GOAL_NODE_MS})")
    print(f"{arguments.nodes:6d} such nodes           {small:8.1f} s")
    print(
        f"{arguments.nodes * 4:6d} such nodes           {large:8.1f} s, {large / small:.2f} times as long (linear: 4)"
    )
    print(f"{GOAL_FLEET_NODES:6d} such nodes           {whole:8.1f} s by that (goal: under {GOAL_FLEET_SECONDS})")
    for name, node in (("8 GPUs", NODE), ("a CPU", MACHINES["cpu"])):
        took = {
            workload: statistics.median(recommendation(node, workload, book) for _ in range(5))
            for workload in WORKLOADS
        }
        slowest = max(took, key=lambda workload: took[workload])
        print(
            f"{name + ', recommendation':27} {took[slowest]:8.1f} ms for {slowest}, the slowest workload "
            f"(goal: under {GOAL_RECOMMENDATION_MS})"
        )


if __name__ == "__main__":
    main()
