# SPDX-License-Identifier: Apache-2.0
"""Where models come from: the Hugging Face Hub or a mirror of it, and the Ollama registry or a mirror of that.

Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Optional

from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import Patience, StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.download import origin, shown_url

ENDPOINT = "https://huggingface.co"
REGISTRY = "https://registry.ollama.ai"
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Hub:
    """Where repositories are read from. ``token`` is a secret; ``endpoint`` has no slash at its end."""

    endpoint: str = ENDPOINT
    token: Optional[str] = None

    @property
    def official(self) -> bool:
        """Whether this is the Hub itself, which asks for a token where a licence must be accepted."""
        return origin(self.endpoint) == origin(ENDPOINT)

    def check(self) -> None:
        """Raise :class:`StoreError` when the token would cross a network that others can read."""
        scheme, host, _port = origin(self.endpoint)
        if scheme not in ("http", "https") or not host:
            raise StoreError(
                f"inference_huggingface_endpoint is '{shown_url(self.endpoint)}'; give an http or https address"
            )
        if self.token and re.search(r"\s", self.token):
            raise StoreError("inference_huggingface_token has blanks or line breaks; give the token alone")
        if self.token and scheme == "http" and host not in _LOCAL:
            raise StoreError(
                f"inference_huggingface_endpoint is {shown_url(self.endpoint)}, where the token would be sent in clear "
                "text; use https, or leave inference_huggingface_token out"
            )

    def token_for(self, url: str) -> Optional[str]:
        """Return the token when an address is of this endpoint."""
        return self.token if origin(url) == origin(self.endpoint) else None

    def mirrored(self, url: str) -> str:
        """Return the address of a file of the official Hub at this endpoint; any other address as it is."""
        if not self.official and url.startswith(ENDPOINT + "/"):
            return self.endpoint + url[len(ENDPOINT) :]
        return url


@dataclass(frozen=True)
class Sources:
    """Everything that models are read from, and how patiently. ``registry`` has no slash at its end."""

    hub: Hub = Hub()
    registry: str = REGISTRY
    patience: Patience = field(default_factory=Patience)

    def check(self) -> None:
        """Raise :class:`StoreError` when an address is none, or the token may not go where it would."""
        self.hub.check()
        scheme, host, _port = origin(self.registry)
        if scheme not in ("http", "https") or not host:
            raise StoreError(
                f"inference_ollama_registry is '{shown_url(self.registry)}'; give an http or https address"
            )
