# SPDX-License-Identifier: Apache-2.0
"""Versions: of drivers and GPUs, and those that image tags name (``v0.33.0``, ``0.32.15-rocm``, ``server-b11669``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from ansible_collections.fleet.inference.plugins.module_utils.planning import images

_BUILD = re.compile(r"(?:^|[-_])b([0-9]+)\Z")
_DOTTED = re.compile(r"(?:^|[-_])v?([0-9]+(?:\.[0-9]+)+)")


def numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a dotted version: ``(580, 95, 5)`` for ``580.95.05``."""
    found = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)


def tag_version(tag: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the kind (``build`` or ``dotted``) and the numbers of the version that a tag names, else None.

    A tag without a version (``latest``, ``server-cuda``) moves: what it names today, it need not name tomorrow.
    """
    build = _BUILD.search(tag)
    if build:
        return "build", (int(build[1]),)
    dotted = _DOTTED.search(tag)
    return ("dotted", numbers(dotted[1])) if dotted else None


def is_denied(tag: str, digest: str | None, denied: Sequence[str]) -> bool:
    """Tell whether an image is denied: by its digest, or by its tag's version, with or without ``v`` and suffix."""
    if digest in denied or images.is_denied(tag, denied):
        return True
    version = tag_version(tag)
    return version is not None and any(version == tag_version(item) for item in denied)


def is_below(tag: str, floor: str) -> bool | None:
    """Tell whether a tag's version is below a floor; None when the two cannot be compared."""
    version, least = tag_version(tag), tag_version(floor)
    if version is None or least is None or version[0] != least[0]:
        return None
    pairs = zip_longest(version[1], least[1], fillvalue=0)
    return next((mine < other for mine, other in pairs if mine != other), False)
