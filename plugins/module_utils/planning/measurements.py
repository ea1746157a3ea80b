# SPDX-License-Identifier: Apache-2.0
"""What was measured on a node: results of its backends, read from the facts and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import PlanError


@dataclass(frozen=True)
class Result:
    """One measured result of a node."""

    backend: str
    model: str
    concurrency: int
    requests_per_second: float | None
    tokens_per_second: float | None
    time_to_first_token_ms: float | None

    def score(self, many_users: bool) -> float | None:
        """Return how well the backend did, higher is better: tokens a second for many users, else the first token."""
        if many_users:
            return self.requests_per_second if self.tokens_per_second is None else self.tokens_per_second
        return None if self.time_to_first_token_ms is None else -self.time_to_first_token_ms


def parse_measurements(host: str, results: Sequence[Mapping[str, Any]]) -> list[Result]:
    """Return the results of a node: what ``measurements`` of its facts holds.

    Args:
        host: Name of the node for errors.
        results: Dictionaries of backend, model, concurrency (users at once, 1 when left out), requests_per_second,
            tokens_per_second (of all users together) and time_to_first_token_ms; other keys are not read.

    Raises:
        PlanError: A result is not such a dictionary, or has an impossible number.
    """
    found = []
    for number, item in enumerate(results):
        at = f"{host}: measured result {number}"
        if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("backend", "model")):
            raise PlanError(f"{at} is {item!r}; give a dictionary with the names of a backend and a model")
        numbers: dict[str, float | None] = {}
        for key in ("requests_per_second", "tokens_per_second", "time_to_first_token_ms", "concurrency"):
            value = item.get(key)
            sound = (
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
            )
            if value is not None and not sound:
                raise PlanError(f"{at} has {key} {value!r}; give a number above 0, or leave it out")
            numbers[key] = value
        users = int(numbers.pop("concurrency") or 1)
        found.append(Result(item["backend"], item["model"], users, **numbers))
    return found
