# SPDX-License-Identifier: Apache-2.0
"""Filters that tell what is in model stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.models import listing


class FilterModule:
    """The filters of the model stores."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "stored_rows": listing.rows,
            "stored_chosen": listing.chosen,
            "stored_problem": listing.name_problem,
            "stored_refusal": listing.removal_problem,
            "stored_table": listing.lines,
        }
