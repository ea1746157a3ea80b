# SPDX-License-Identifier: Apache-2.0
"""The plan: what a node runs, as a pure function of its facts, its variables and the catalog."""

from __future__ import annotations

from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.plan import SCHEMA_VERSION, plan_node

__all__ = ["SCHEMA_VERSION", "PlanError", "plan_node"]
