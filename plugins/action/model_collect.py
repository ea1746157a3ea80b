# SPDX-License-Identifier: Apache-2.0
"""Bring models from a node's store to the controller's, from which they are carried to other nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.fleet.inference.plugins.module_utils.models import store
from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Sources
from ansible_collections.fleet.inference.plugins.plugin_utils.model_cache import ModelCache

display = Display()


class ActionModule(ActionBase):
    """Runs on the node that has the models: ``delegate_to`` it."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return ``collected``, the models that are on the controller now, or would be in check mode."""
        self._vars = task_vars or {}
        result = super().run(tmp, self._vars)
        host = str(self._task.delegate_to or self._vars.get("inventory_hostname", "localhost"))
        try:
            result.update(self._collect(host))
        except (StoreError, AnsibleError, OSError) as error:
            result.update(failed=True, msg=f"{host}: {error}")
        return result

    def _collect(self, host: str) -> dict[str, Any]:
        root = str(self._task.args.get("path") or "/var/lib/inference-fleet/models")
        folder = Path(str(self._task.args.get("cache_path") or "~/.cache/inference-fleet/models")).expanduser()
        only = self._task.args.get("only")
        models = [dict(model) for model in self._task.args.get("models") or []]
        store.check_models(models, root)
        cache = ModelCache(folder / "store", root, Sources())
        keys = {store.item(model, root, record=False).key: model for model in models}
        wanted = {key: model for key, model in keys.items() if (only is None or key in only) and not cache.has(model)}
        if not wanted:
            return {"changed": False, "collected": []}
        answer = self._execute_module(
            module_name="fleet.inference.model_store",
            module_args={"path": root, "models": [*wanted.values()], "inspect": True, "ask": False, "describe": True},
            task_vars=self._vars,
        )
        if answer.get("failed") or answer.get("unreachable"):
            raise StoreError(str(answer.get("msg") or "the module gave no answer"))
        described = answer["described"]
        for key, entry in {} if self._task.check_mode else described.items():
            self._bring(host, wanted[key], entry, cache)
        return {"changed": bool(described), "collected": sorted(described)}

    def _bring(self, host: str, model: Mapping[str, Any], entry: Mapping[str, Any], cache: ModelCache) -> None:
        """Fetch what is missing here of one model; the bytes are verified before they count."""
        absent = set(cache.absent(model, entry["manifest"]))
        files = [path for path in entry["files"] if cache.local(path) in absent]
        for path in files:
            local = Path(cache.local(path))
            local.parent.mkdir(parents=True, exist_ok=True)
            carried = local.with_name(local.name + ".collected")
            display.display(f"{host}: {path} to the controller")
            try:
                self._connection.fetch_file(path, str(carried))
                cache.take(model, entry["manifest"], {str(local): str(carried)})
            finally:
                carried.unlink(missing_ok=True)
        if not files:
            cache.take(model, entry["manifest"], {})
