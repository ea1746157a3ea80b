# SPDX-License-Identifier: Apache-2.0
"""How each engine image is made on this machine where the official one can't be reached; a module for each engine."""

from __future__ import annotations

from typing import Any

from . import litellm, llamacpp, ollama, sglang, stand_in_gpu, vllm
from .base import Recipe

#: What a fleet of llama.cpp services needs: images that local nodes have unless their inventory names others.
DEFAULT = ("llamacpp", "litellm")


def recipes(engines: dict[str, Any]) -> dict[str, Recipe]:
    """Name → recipe of every image that local nodes may pull, in the order in which they must be made.

    Args:
        engines: ``inference_engines`` of the project's own version table.
    """
    modules = (llamacpp, litellm, ollama, sglang, vllm, stand_in_gpu)
    found = [recipe for module in modules for recipe in module.recipes(engines)]
    return {recipe.name: recipe for recipe in found}
