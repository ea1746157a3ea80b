# SPDX-License-Identifier: Apache-2.0
"""Container image references: the registry part and its rewriting, tags, digests, denied versions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

DEFAULT_REGISTRY = "docker.io"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")


def split_repository(repository: str) -> tuple[str, str]:
    """Split a repository into registry and path, by the rule that Docker uses.

    The first component is a registry when it has a dot or a port or is ``localhost``; everything else is on
    Docker Hub, where a name of one component belongs to ``library``.
    """
    first, separator, rest = repository.partition("/")
    if separator and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return DEFAULT_REGISTRY, repository if separator else f"library/{repository}"


def image_reference(repository: str, tag: str, digest: str | None, registries: Mapping[str, str]) -> str:
    """Return the image to pull.

    Args:
        repository: Repository with its registry, such as ``ghcr.io/ggml-org/llama.cpp``.
        tag: Tag, used when there is no digest.
        digest: ``sha256:`` and 64 hexadecimal digits when the image is locked, else None.
        registries: Registry of the repository to the registry that is used in its place.

    Raises:
        ValueError: The tag or the digest is not one.
    """
    registry, path = split_repository(repository)
    name = f"{registries.get(registry, registry).rstrip('/')}/{path}"
    if digest is not None:
        if not DIGEST.match(digest):
            raise ValueError(f"the digest {digest!r} is not sha256: and 64 hexadecimal digits")
        return f"{name}@{digest}"
    if not TAG.match(tag):
        raise ValueError(f"the tag {tag!r} is not an image tag")
    return f"{name}:{tag}"


def is_denied(tag: str, denied: Sequence[str]) -> bool:
    """Tell whether a tag names a denied version, whatever its leading ``v`` or suffix (``v1.82.7-stable``)."""
    version = tag.removeprefix("v")
    return any(version == item or version.startswith((f"{item}-", f"{item}.")) for item in denied)
