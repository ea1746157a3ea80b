# SPDX-License-Identifier: Apache-2.0
"""Models of the Ollama library in Ollama's own store, so that the service needs no network to serve them.

The layout and the requests are Ollama's (manifest/paths.go, server/images.go): ``manifests/<host>/<namespace>/<model>/
<tag>`` lists layers by their SHA-256, which lie in ``blobs/sha256-<digits>``; a registry has them below ``/v2/``.

Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, List, Mapping, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import Blob, Receipts, StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.download import DownloadError, read, shown_url
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Sources
from ansible_collections.fleet.inference.plugins.module_utils.services.files import write_text

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_NAMESPACE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")


def parse_name(name: str) -> Tuple[str, str, str, str]:
    """Return host, namespace, model and tag of a name as Ollama reads it; raises :class:`StoreError`."""
    rest, _colon, tag = name.partition(":")
    parts = rest.split("/")
    host, namespace, model = ([_HOST, _NAMESPACE][: 3 - len(parts)] + parts)[-3:]
    if (
        len(parts) > 3
        or not _NAMESPACE_PART.match(namespace)
        or not all(_PART.match(part) for part in (host, model, tag or _TAG))
    ):
        raise StoreError(f"'{name}' is no name that Ollama can give a model; use one like qwen3-8b or qwen3:8b")
    return host, namespace, model, tag or _TAG


class Library:
    """One wanted model of a registry, which Ollama serves under its own name and under the model's public name."""

    #: Whether somebody must be asked what it consists of.
    needs_manifest = True

    def __init__(self, model: Mapping[str, Any], root: str, record: bool = True) -> None:
        """``model`` is an entry of the plan's models; ``record`` false writes no receipts (check mode)."""
        self.title = str(model["ollama"])
        self._host, self._namespace, self._model, self._tag = parse_name(self.title)
        self._folder = str(model["path"])
        # The tag first: the public name may be the same.
        names = dict.fromkeys((self.title, str(model.get("model") or self.title)))
        self._manifests = [os.path.join(self._folder, "manifests", *parse_name(name)) for name in names]
        self.receipts = Receipts(os.path.join(root, ".receipts", "ollama.json"), record)

    @property
    def key(self) -> str:
        """What tells it from all other wanted models."""
        return f"{self._manifests[0]}@{self._manifests[-1]}"

    def recorded(self) -> Optional[str]:
        """Return the manifest that is in the store; None without one."""
        try:
            with open(self._manifests[0], encoding="utf-8") as stream:
                return stream.read()
        except (OSError, ValueError):
            return None

    def is_placed(self) -> bool:
        """Return whether manifest and layers are there as they were verified; asks nobody and reads no weights."""
        text = self.recorded()
        if text is None or not all(os.path.exists(path) for path in self._manifests):
            return False
        try:
            return all(self.receipts.vouches(blob) for blob in self._layers(text, None))
        except StoreError:
            return False

    def manifest(self, sources: Sources) -> str:
        """Ask the registry what the model consists of; raises :class:`StoreError`."""
        registry, patience = sources.registry, sources.patience
        url = f"{self._base(registry)}/manifests/{self._tag}"
        try:
            body, _page = read(
                url,
                accept=_MANIFEST_TYPE,
                stall_timeout=patience.stall_timeout,
                retries=patience.retries,
                sleep=patience.sleep,
            )
            text = body.decode("utf-8")
        except DownloadError as error:
            if error.status == 404:
                raise StoreError(
                    f"{self.title} is not in the Ollama registry {shown_url(registry)}; correct ollama.tag in the "
                    "model's entry of inference_models"
                ) from error
            raise StoreError(f"{self.title}: {error}") from error
        except ValueError as error:
            raise self._strange() from error
        self.blobs(text, sources)
        return text

    def blobs(self, content: str, sources: Sources) -> List[Blob]:
        """Return the layers that a manifest lists, each content once."""
        return self._layers(content, sources.registry)

    def _layers(self, manifest: str, registry: Optional[str]) -> List[Blob]:
        found = {}
        try:
            content = json.loads(manifest)
            for layer in [content["config"], *content["layers"]]:
                match = _DIGEST.match(str(layer["digest"]))
                if match is None:
                    raise ValueError(layer["digest"])
                digest = match.group(1)
                found[digest] = Blob(
                    path=os.path.join(self._folder, "blobs", f"sha256-{digest}"),
                    size_bytes=int(layer["size"]),
                    checksum=digest,
                    url=registry and f"{self._base(registry)}/blobs/sha256:{digest}",
                    title=self.title,
                    name=f"{self.title}, layer {digest[:12]}",
                    remedy="run again, or read it from another inference_ollama_registry",
                )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange() from error
        return list(found.values())

    def link(self, content: str) -> None:
        """Name the model, once all its layers are there."""
        try:
            for path in self._manifests:
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                write_text(path, content)
        except OSError as error:
            raise StoreError(
                f"{self.title} can't be written to {self._folder}: {error.strerror or error}; see to that disk"
            ) from error

    def _base(self, registry: str) -> str:
        # A model of another host is read from there; a mirror stands for Ollama's own.
        base = registry if self._host == _HOST else f"https://{self._host}"
        return f"{base}/v2/{self._namespace}/{self._model}"

    def _strange(self) -> StoreError:
        return StoreError(
            f"the registry's answer for {self.title} is no manifest of Ollama; correct inference_ollama_registry"
        )
