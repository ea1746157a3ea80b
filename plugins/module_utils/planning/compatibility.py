# SPDX-License-Identifier: Apache-2.0
"""What runs where: images on devices, drivers and CPUs, the formats they serve there, and the nearest that works.

Nothing here knows of memory: that an image runs and serves a format does not say that the model fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import (
    FORMATS,
    Engine,
    Requirement,
    Variant,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.versions import numbers

#: Driver branch that last supports Maxwell, Pascal and Volta, that is compute capabilities below 7.5.
_LAST_BRANCH_BEFORE_TURING = "580"
#: Which backend advice names first when several would serve the same format equally well.
_PREFERENCE = ("vllm", "sglang", "llamacpp", "ollama")
#: AMD's accelerators without graphics: no Vulkan driver is known to work on them.
_WITHOUT_GRAPHICS = ("gfx908", "gfx90a", "gfx942", "gfx950")


@dataclass(frozen=True)
class Refusal:
    """Why an image does not serve here, in one clause, and what would help.

    ``closeness`` compares the refusals of several images: the higher, the less is missing.
    """

    closeness: int
    problem: str
    remedy: str

    def sentence(self, alternative: Alternative | None = None) -> str:
        """Return problem and remedy, with the nearest that works when it is known."""
        hint = f"; nearest that works: {alternative.text}" if alternative else ""
        return f"{self.problem}; {self.remedy}{hint}"


@dataclass(frozen=True)
class Served:
    """A format of a model that an image serves on a device.

    ``run_as`` is what the engine makes of it: a bf16 model is converted to fp16 where the GPU has no bf16. Without
    ``native`` the GPU stores the format and computes in 16 bits: it saves memory and no time.
    """

    variant: Variant
    model_format: str
    run_as: str
    native: bool


@dataclass(frozen=True)
class Alternative:
    """Something that would work: a backend on a tier of this node, with one of the model's formats."""

    backend: str
    tier: str
    served: Served
    same_tier: bool

    @property
    def text(self) -> str:
        """Return the alternative in words: ``llamacpp with gguf and inference_tier: vulkan``."""
        tier = "" if self.same_tier else f" and inference_tier: {self.tier}"
        return f"{self.backend} with {self.served.model_format}{tier}"


def device_title(device: Mapping[str, Any]) -> str:
    """Return a GPU's name for people: ``GPU 0 (NVIDIA H100)``."""
    return f"GPU {device.get('index')} ({device.get('name') or 'unknown'})"


def first_variant(
    engine: Engine,
    tier: str,
    device: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    run_as: str | None = None,
    *,
    float16: bool = True,
) -> Variant | Refusal:
    """Return an engine's first image that runs here, else why the one that comes closest does not.

    Args:
        engine: The engine.
        tier: Tier that the node is used as.
        device: GPU of the hardware facts; None on tier ``cpu``.
        facts: Hardware facts of the node: its CPU and its driver are read.
        run_as: Format of weights that the image must serve too, when one is wanted (see ``Served.run_as``).
        float16: Whether the model of that format can be computed in float16 (see ``Model.float16``).
    """
    variants = [variant for variant in engine.variants if variant.tier == tier]
    if not variants:
        tiers = ", ".join(sorted({variant.tier for variant in engine.variants}))
        return Refusal(-1, f"{engine.name} has no image for tier {tier}", f"set inference_tier to one of {tiers}")
    refusals = []
    for variant in variants:
        found = refusal(engine, variant, device, facts, run_as, float16=float16)
        if found is None:
            return variant
        refusals.append(found)
    return max(refusals, key=lambda item: item.closeness)


def refusal(
    engine: Engine,
    variant: Variant,
    device: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    run_as: str | None = None,
    *,
    float16: bool = True,
) -> Refusal | None:
    """Return why an image does not run on this node and GPU (or does not serve a format there), None when it does."""
    found = _cpu_refusal(engine, variant, facts)
    if found is None and device is not None:
        found = _gpu_refusal(engine, variant, device, facts) or _driver_refusal(engine, variant, device, facts)
    if found is None and run_as is not None:
        overflow = None if float16 else _float16_refusal(engine, variant, device)
        found = overflow or _format_refusal(engine, variant, device, run_as)
    return found


def served_formats(
    engine: Engine,
    tier: str,
    device: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    model_formats: Iterable[str] = FORMATS,
    *,
    float16: bool = True,
) -> list[Served]:
    """Return which formats of a model an engine serves here, best quality first, each with the image that does.

    Without ``float16`` the model cannot be computed in float16 (see ``Model.float16``).
    """
    variants = [
        variant
        for variant in engine.variants
        if variant.tier == tier
        and refusal(engine, variant, device, facts) is None
        and (float16 or _keeps_range(variant, device))
    ]
    wanted = set(model_formats)
    found = (_served(variants, device, item) for item in FORMATS if item in wanted)
    return [item for item in found if item is not None]


def kv_cache_types(variant: Variant, device: Mapping[str, Any] | None) -> list[str]:
    """Return the types that the KV cache may have on a GPU, by the engine's own names, in the table's order."""
    return [name for name, needs in variant.kv_cache_types.items() if _meets(needs, device)]


def compiles_at_start(variant: Variant, device: Mapping[str, Any] | None) -> bool:
    """Tell whether the driver must compile the image's code for this GPU, which makes the first start slow."""
    native = variant.native_compute_capabilities
    return bool(native) and device is not None and device.get("architecture") not in native


def nearest(
    engines: Sequence[Engine],
    backend: str,
    tier: str,
    device: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    *,
    model_formats: Iterable[str] = FORMATS,
    float16: bool = True,
) -> Alternative | None:
    """Return what works here in place of a backend that was refused, None when nothing does.

    The GPU's tier comes before Vulkan and the CPU, the wished backend before others, and the better format before
    the smaller one.

    Args:
        engines: Engines that may be named.
        backend: Backend that was wished.
        tier: Tier that it was wished on.
        device: GPU of the hardware facts; None on tier ``cpu``.
        facts: Hardware facts of the node.
        model_formats: Formats that the model has; all when no model is known.
        float16: Whether it can be computed in float16.
    """
    formats = tuple(model_formats)
    tiers = _tiers(tier, device)
    options = [
        Alternative(engine.name, other, served, other == tier)
        for engine in engines
        for other in tiers
        for served in served_formats(engine, other, None if other == "cpu" else device, facts, formats, float16=float16)
    ]

    return best(options, backend, tier, device)


def best(
    options: Iterable[Alternative], backend: str, tier: str, device: Mapping[str, Any] | None
) -> Alternative | None:
    """Return the alternative that is nearest to a backend on a tier, by the order of `nearest`; None of none."""
    tiers = _tiers(tier, device)

    def cost(option: Alternative) -> tuple[int, bool, int, int]:
        quality, taste = FORMATS.index(option.served.model_format), _PREFERENCE.index(option.backend)
        return tiers.index(option.tier), option.backend != backend, quality, taste

    return min(options, key=cost, default=None)


def _tiers(tier: str, device: Mapping[str, Any] | None) -> list[str]:
    """Return the tiers that a node could be used as, the present one first, then the faster before the slower."""
    tiers = [tier]
    if device is not None and device.get("vendor") in ("amd", "intel"):
        tiers += ["vulkan"] if device.get("architecture") not in _WITHOUT_GRAPHICS else []
    return list(dict.fromkeys([*tiers, "cpu"]))


def _image(engine: Engine, variant: Variant) -> str:
    return f"{engine.name}'s image {variant.tag}"


def _cpu_refusal(engine: Engine, variant: Variant, facts: Mapping[str, Any]) -> Refusal | None:
    image = _image(engine, variant)
    if not _is_built_for(variant, facts):
        architecture = (facts.get("cpu") or {}).get("architecture")
        remedy = f"use a node of {_union(engine, variant.tier, 'architectures')}"
        if variant.tier != "cpu" and _serves_tier(engine, "cpu", facts):
            remedy = "set inference_tier: cpu"
        return Refusal(0, f"{image} is not built for the CPU architecture {architecture}", remedy)
    missing = ", ".join(_missing_flags(variant, facts))
    if missing:
        return Refusal(1, f"{image} needs {missing}, which this node's CPU does not have", f"use a node with {missing}")
    return None


def _is_built_for(variant: Variant, facts: Mapping[str, Any]) -> bool:
    return not variant.architectures or (facts.get("cpu") or {}).get("architecture") in variant.architectures


def _missing_flags(variant: Variant, facts: Mapping[str, Any]) -> list[str]:
    """Return the instruction sets that the CPU lacks; facts without any do not know them."""
    flags = (facts.get("cpu") or {}).get("flags")
    return [flag for flag in variant.cpu_flags if flag not in flags] if flags else []


def _gpu_refusal(
    engine: Engine, variant: Variant, device: Mapping[str, Any], facts: Mapping[str, Any]
) -> Refusal | None:
    title, architecture, image = device_title(device), device.get("architecture"), _image(engine, variant)
    if variant.gpu_architectures and architecture not in variant.gpu_architectures:
        remedy = f"use one of {_union(engine, variant.tier, 'gpu_architectures')}"
        if _serves_tier(engine, "vulkan", facts):
            remedy = f"set inference_tier: vulkan, or {remedy}"
        known = architecture or "of unknown architecture"
        return Refusal(1, f"{title} is {known}, for which {image} has no code", remedy)
    floor = variant.minimum_compute_capability
    excluded = architecture in variant.excluded_compute_capabilities
    if not excluded and not (floor and architecture and numbers(architecture) < numbers(floor)):
        return None
    remedy = "set inference_tier: cpu"
    if not _serves_tier(engine, "cpu", facts):
        remedy = f"use a GPU of compute capability {floor} or newer" if floor else "use another GPU"
    has = f"{title} has compute capability {architecture}"
    if excluded:
        return Refusal(0, f"{has}, for which {image} has no code", remedy)
    return Refusal(1, f"{has} and {image} needs {floor} or newer", remedy)


def _driver_refusal(
    engine: Engine, variant: Variant, device: Mapping[str, Any], facts: Mapping[str, Any]
) -> Refusal | None:
    title, architecture, image = device_title(device), device.get("architecture"), _image(engine, variant)
    driver = facts.get("driver") or {}
    version, cuda = driver.get("version"), driver.get("cuda_version")
    needed = variant.minimum_driver
    if needed and (not version or numbers(str(version)) < numbers(needed)):
        remedy = f"install driver {needed} or newer"
        if architecture and variant.tier == "cuda" and numbers(architecture) < (7, 5):
            remedy = f"install driver branch {_LAST_BRANCH_BEFORE_TURING}, the last one for this GPU"
        has = f"has driver {version}" if version else "has no driver"
        return Refusal(3, f"{title} {has} and {image} needs {needed} or newer", remedy)
    needed = variant.minimum_cuda_version
    compiled = architecture in variant.native_compute_capabilities
    if needed and not compiled and not (cuda and numbers(str(cuda)) >= numbers(needed)):
        return Refusal(
            2,
            f"{title} has a driver for CUDA {cuda or 'unknown'} and {image} needs CUDA {needed} for compute capability "
            f"{architecture}",
            f"install a driver that reports CUDA {needed} or newer",
        )
    return None


def _keeps_range(variant: Variant, device: Mapping[str, Any] | None) -> bool:
    """Tell whether an image computes in a type of float32's range: in bfloat16, or as GGUF's engines choose."""
    if set(variant.formats) <= {"gguf"}:
        return True
    return "bf16" in variant.formats and _meets(variant.formats["bf16"], device)


def _float16_refusal(engine: Engine, variant: Variant, device: Mapping[str, Any] | None) -> Refusal | None:
    """Say that a model whose values overflow in float16 would be computed in it, which a smaller format changes not."""
    if _keeps_range(variant, device):
        return None
    needs = variant.formats.get("bf16")
    remedy = "use another backend"
    if isinstance(needs, str):
        remedy = f"use a GPU of compute capability {needs} or newer"
    elif needs is not None:
        remedy = f"use one of {', '.join(needs)}"
    where = "the CPU" if device is None else device_title(device)
    return Refusal(
        4, f"{_image(engine, variant)} has no bfloat16 on {where} and this model's values overflow in float16", remedy
    )


def _format_refusal(engine: Engine, variant: Variant, device: Mapping[str, Any] | None, run_as: str) -> Refusal | None:
    image = _image(engine, variant)
    needs = variant.formats.get(run_as)
    if run_as in variant.formats and _meets(needs, device):
        return None
    here = [item for item in FORMATS if item in variant.formats and _meets(variant.formats[item], device)]
    remedy = f"use one of {', '.join(here)}" if here else "use another backend"
    if run_as not in variant.formats or device is None:
        return Refusal(4, f"{image} does not serve {run_as}", remedy)
    title, architecture = device_title(device), device.get("architecture") or "unknown"
    if isinstance(needs, str):
        problem = f"{title} has compute capability {architecture} and {image} serves {run_as} from {needs} on"
    else:
        problem = f"{title} is {architecture} and {image} serves {run_as} on {', '.join(needs or ())} only"
    return Refusal(4, problem, remedy)


def _served(variants: Sequence[Variant], device: Mapping[str, Any] | None, model_format: str) -> Served | None:
    # Engines convert bf16 when they load it where the GPU cannot compute in it.
    for run_as in (model_format, "fp16") if model_format == "bf16" else (model_format,):
        for variant in variants:
            if run_as in variant.formats and _meets(variant.formats[run_as], device):
                return Served(variant, model_format, run_as, _meets(variant.native_formats.get(run_as), device))
    return None


def _meets(needs: Requirement, device: Mapping[str, Any] | None) -> bool:
    """Tell whether a GPU has what is needed; of a GPU of unknown architecture nothing is assumed."""
    if needs is None:
        return True
    architecture = (device or {}).get("architecture")
    if isinstance(needs, tuple):
        return architecture in needs
    return bool(architecture) and numbers(str(architecture)) >= numbers(needs)


def _union(engine: Engine, tier: str, attribute: str) -> str:
    """Return what all of an engine's images for a tier are built for, in the table's order."""
    lists = (getattr(variant, attribute) for variant in engine.variants if variant.tier == tier)
    return ", ".join(dict.fromkeys(item for items in lists for item in items))


def _serves_tier(engine: Engine, tier: str, facts: Mapping[str, Any]) -> bool:
    """Tell whether an engine has an image for another tier that this node's CPU runs."""
    return any(
        variant.tier == tier and _is_built_for(variant, facts) and not _missing_flags(variant, facts)
        for variant in engine.variants
    )
