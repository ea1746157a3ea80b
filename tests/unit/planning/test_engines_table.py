# SPDX-License-Identifier: Apache-2.0
"""The engine table: whole, sorted, of pinned versions; and how wrong, denied and old entries are refused."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, images, plan_node, versions
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import (
    BACKENDS,
    FEATURES,
    FORMATS,
    PLANNED_BACKENDS,
    Catalog,
)
from planning_machines import MACHINES, ROOT, catalog

CATALOG = catalog()
TABLE: dict[str, Any] = CATALOG["engines"]
ENGINE_KEYS = (
    "repository",
    "tag",
    "digest",
    "port",
    "container_port",
    "features",
    "minimum_version",
    "denied",
    "variants",
)
VARIANT_KEYS = (
    "tier",
    "order",
    "repository",
    "tag",
    "digest",
    "architectures",
    "cpu_flags",
    "gpu_architectures",
    "minimum_compute_capability",
    "excluded_compute_capabilities",
    "native_compute_capabilities",
    "minimum_cuda_version",
    "minimum_driver",
    "formats",
    "native_formats",
    "kv_cache_types",
)
IMAGES = [
    pytest.param(backend, name, id=f"{backend}-{name}") for backend in BACKENDS for name in TABLE[backend]["variants"]
]

# Every backend and tier that there is an official image for, and the CPU architectures of that tier's images together.
COVERED = {
    ("llamacpp", "cpu"): {"x86_64", "aarch64"},
    ("llamacpp", "cuda"): {"x86_64", "aarch64"},
    ("llamacpp", "rocm"): {"x86_64"},
    ("llamacpp", "vulkan"): {"x86_64"},
    ("ollama", "cpu"): {"x86_64", "aarch64"},
    ("ollama", "cuda"): {"x86_64", "aarch64"},
    ("ollama", "rocm"): {"x86_64"},
    ("ollama", "vulkan"): {"x86_64"},
    ("sglang", "cpu"): {"x86_64"},
    ("sglang", "cuda"): {"x86_64", "aarch64"},
    ("sglang", "rocm"): {"x86_64"},
    ("vllm", "cpu"): {"x86_64", "aarch64"},
    ("vllm", "cuda"): {"x86_64", "aarch64"},
    ("vllm", "rocm"): {"x86_64"},
}
PORTS = {"ollama": (11434, 11434), "vllm": (8003, 8000), "sglang": (8004, 30000), "llamacpp": (8005, 8080)}


def in_order(keys: list[str], order: tuple[str, ...]) -> bool:
    return keys == [key for key in order if key in keys]


def test_the_table_is_sorted_and_has_no_unknown_key():
    assert list(TABLE) == sorted(TABLE)
    for entry in TABLE.values():
        assert in_order(list(entry), ENGINE_KEYS), list(entry)
        variants = entry.get("variants", {})
        assert list(variants) == sorted(variants)
        for variant in variants.values():
            assert in_order(list(variant), VARIANT_KEYS), list(variant)
            for key in ("formats", "native_formats", "kv_cache_types"):
                assert list(variant.get(key, {})) == sorted(variant.get(key, {}))
        assert entry.get("features", []) == sorted(entry.get("features", []))


def test_no_line_names_one_key_twice():
    """YAML readers keep the last of two equal keys without a word."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    text = (ROOT / "group_vars" / "all" / "engines.yml").read_text(encoding="utf-8")
    assert yaml.load(text, Loader=Strict)["inference_engines"] == TABLE


def test_every_backend_and_tier_is_there():
    book = Catalog("h", CATALOG)
    assert book.engine_names == sorted(BACKENDS)
    assert [engine.name for engine in book.sound_engines()] == sorted(BACKENDS)
    covered: dict[tuple[str, str], set[str]] = {}
    for engine in book.sound_engines():
        assert (engine.port, engine.container_port) == PORTS[engine.name]
        for variant in engine.variants:
            covered.setdefault((engine.name, variant.tier), set()).update(variant.architectures)
    assert covered == COVERED


def test_only_backends_that_the_plan_implements_are_offered():
    assert Catalog("h", CATALOG).backends == list(PLANNED_BACKENDS) == ["llamacpp", "ollama", "sglang", "vllm"]


@pytest.mark.parametrize(("backend", "name"), IMAGES)
def test_image(backend, name):
    entry = TABLE[backend]["variants"][name]
    registry, _ = images.split_repository(entry["repository"])
    assert entry["repository"].startswith(f"{registry}/"), "the registry is named"
    assert images.TAG.match(entry["tag"])
    assert versions.tag_version(entry["tag"]) is not None, "a tag without a version moves"
    assert not re.search(r"latest|nightly|dev|stable|main", entry["tag"])
    assert not versions.is_denied(entry["tag"], entry["digest"], TABLE[backend]["denied"])
    floor = TABLE[backend].get("minimum_version")
    assert floor is None or versions.is_below(entry["tag"], floor) is False
    assert images.image_reference(entry["repository"], entry["tag"], entry["digest"], {})


@pytest.mark.parametrize(("backend", "name"), IMAGES)
def test_what_an_image_serves(backend, name):
    variant = next(item for item in Catalog("h", CATALOG).engine(backend).variants if item.name == name)
    assert set(variant.formats) <= set(FORMATS)
    assert set(variant.native_formats) <= set(variant.formats)
    assert variant.formats
    assert variant.kv_cache_types
    assert variant.architectures
    assert bool(variant.gpu_architectures) == (variant.tier == "rocm")
    assert bool(variant.minimum_compute_capability) == bool(variant.minimum_driver) == (variant.tier == "cuda")
    for needs in (*variant.formats.values(), *variant.kv_cache_types.values()):
        # A floor that the image has anyway would be noise; one outside of it a mistake.
        if isinstance(needs, str):
            assert versions.numbers(needs) > versions.numbers(variant.minimum_compute_capability or "0.0")
        elif needs is not None:
            assert set(needs) < set(variant.gpu_architectures)


def test_images_of_one_tier_are_told_apart_by_their_order():
    for engine in Catalog("h", CATALOG).sound_engines():
        for tier in {variant.tier for variant in engine.variants}:
            orders = [variant.order for variant in engine.variants if variant.tier == tier]
            assert len(orders) == len(set(orders))


def test_images_for_older_drivers_come_after_the_current_ones():
    for backend in ("sglang", "vllm"):
        first, second = (item for item in Catalog("h", CATALOG).engine(backend).variants if item.tier == "cuda")
        assert (first.minimum_driver, second.minimum_driver) == ("580", "525")
        assert second.tag.endswith("-cu129")
        assert versions.is_below(second.tag, first.tag)


def test_features():
    features = {engine.name: set(engine.features) for engine in Catalog("h", CATALOG).sound_engines()}
    assert all(names <= set(FEATURES) for names in features.values())
    assert all(
        {"continuous_batching", "prefix_caching", "structured_output", "streaming"} <= names
        for names in features.values()
    )
    assert {name for name in features if "tensor_parallel" in features[name]} == {"vllm", "sglang"}
    assert {name for name in features if "model_switching" in features[name]} == {"llamacpp", "ollama"}
    assert {name for name in features if "metrics" in features[name]} == {"llamacpp", "sglang", "vllm"}
    assert {name for name in features if "api_key" in features[name]} == {"llamacpp", "sglang", "vllm"}


def test_litellm_is_a_clean_version():
    entry = TABLE["litellm"]
    assert {"1.82.7", "1.82.8", "1.107.0"} <= set(entry["denied"])
    assert not versions.is_denied(entry["tag"], entry["digest"], entry["denied"])
    assert versions.is_below(entry["tag"], entry["minimum_version"]) is False


@pytest.mark.parametrize(
    ("tag", "version"),
    [
        ("v0.33.0", ("dotted", (0, 33, 0))),
        ("0.32.15-rocm", ("dotted", (0, 32, 15))),
        ("v0.5.18-rocm720-mi30x", ("dotted", (0, 5, 18))),
        ("v0.5.15.post1-rocm720", ("dotted", (0, 5, 15))),
        ("main-v1.74.0-stable", ("dotted", (1, 74, 0))),
        ("server-cuda13-b11669", ("build", (11669,))),
        ("b11669", ("build", (11669,))),
        ("latest", None),
        ("server-cuda12", None),
        ("latest-cu129", None),
        ("nightly-cbe9c40f", None),
        ("", None),
    ],
)
def test_tag_version(tag, version):
    assert versions.tag_version(tag) == version


@pytest.mark.parametrize(
    ("tag", "floor", "below"),
    [
        ("v0.18.0", "0.18.0", False),
        ("0.18", "0.18.0", False),
        ("v0.9.2", "0.18.0", True),
        ("v0.31.0-cu129", "0.18.0", False),
        ("server-b999", "b8908", True),
        ("server-cuda-b11669", "b8908", False),
        ("server-b11669", "0.18.0", None),
        ("latest", "0.18.0", None),
    ],
)
def test_is_below(tag, floor, below):
    assert versions.is_below(tag, floor) is below


@pytest.mark.parametrize(
    ("tag", "denied"),
    [
        ("server-b11670", True),
        ("server-cuda-b11670", True),
        ("server-b116700", False),
        ("v0.5.19", True),
        ("0.5.19-cu129", True),
        ("v0.5.19rc1", True),
        ("v0.5.190", False),
        ("v0.5.1", False),
    ],
)
def test_is_denied(tag, denied):
    assert versions.is_denied(tag, None, ["b11670", "0.5.19"]) is denied


def changed(engine: dict[str, Any] | None = None, **variant: Any) -> dict[str, Any]:
    book = copy.deepcopy(CATALOG)
    book["engines"]["llamacpp"].update(engine or {})
    entry = book["engines"]["llamacpp"]
    entry["variants"] = {"cuda": {**entry["variants"]["cuda"], **variant}}
    return book


DIGEST = f"sha256:{'a' * 64}"
AT = "inference_engines.llamacpp.variants.cuda"
WRONG: list[tuple[dict[str, Any], str]] = [
    (
        changed({"denied": ["b11669"]}, digest=DIGEST),
        f"tag of {AT} is 'server-cuda-b11669'; give a version that inference_engines does not deny",
    ),
    (
        changed({"denied": [DIGEST]}, digest=DIGEST),
        f"tag of {AT} is 'server-cuda-b11669'; give a version that inference_engines does not deny",
    ),
    (
        changed({"minimum_version": "b20000"}),
        f"tag of {AT} is 'server-cuda-b11669'; give version b20000 or newer",
    ),
    (
        changed({"minimum_version": "b20000"}, digest=DIGEST),
        f"tag of {AT} is 'server-cuda-b11669'; give version b20000 or newer",
    ),
    (
        changed({"minimum_version": "1.0.0"}),
        f"tag of {AT} is 'server-cuda-b11669'; give version 1.0.0 or newer",
    ),
    (
        changed({"minimum_version": "newest"}),
        "minimum_version of inference_engines.llamacpp is 'newest'; give a version such as '0.18.0', or a build such "
        "as b11669",
    ),
    (
        changed({"minimum_version": 0.18}),
        "minimum_version of inference_engines.llamacpp is 0.18; give a text",
    ),
    (
        changed({"features": ["batching"]}),
        f"features of inference_engines.llamacpp is 'batching'; give some of {', '.join(FEATURES)}",
    ),
    (
        changed(tag="server-cuda"),
        f"tag of {AT} is 'server-cuda'; give a tag that names a version (this one moves), or the digest too",
    ),
    (
        changed(order="first"),
        f"order of {AT} is 'first'; give a whole number, the lowest for the preferred image of a tier",
    ),
    (
        changed(formats=["gguf"]),
        f"formats of {AT} is ['gguf']; give a dictionary of names to what each needs",
    ),
    (
        changed(formats={"ggml": None}),
        f"formats of {AT} is 'ggml'; give some of {', '.join(FORMATS)}",
    ),
    (
        changed(formats={"fp8": 8.9}),
        f"fp8 of formats of {AT} is 8.9; give null, or a compute capability such as '8.0'",
    ),
    (
        changed(formats={"fp8": ["gfx942"]}),
        f"fp8 of formats of {AT} is ['gfx942']; give null, or a compute capability such as '8.0'",
    ),
    (
        changed(tier="rocm", formats={"fp8": "8.9"}),
        f"fp8 of formats of {AT} is '8.9'; give null, or a list of gfx targets",
    ),
    (
        changed(tier="rocm", formats={"fp8": ["mi300x"]}),
        f"fp8 of formats of {AT} is 'mi300x'; give a list of gfx targets, such as gfx942",
    ),
    (changed(tier="cpu", formats={"fp8": "8.9"}), f"fp8 of formats of {AT} is '8.9'; give null"),
    (
        changed(kv_cache_types={"F 16": None}),
        f"kv_cache_types of {AT} is 'F 16'; give the engine's own names",
    ),
    (
        changed(gpu_architectures=["MI300X"]),
        f"gpu_architectures of {AT} is 'MI300X'; give a list of gfx targets, such as gfx942",
    ),
    (
        changed(minimum_compute_capability="sm_80"),
        f"minimum_compute_capability of {AT} is 'sm_80'; give a compute capability, such as '8.0'",
    ),
    (
        changed(native_compute_capabilities=["90"]),
        f"native_compute_capabilities of {AT} is '90'; give a list of compute capabilities, such as '8.0'",
    ),
    (
        changed(minimum_driver="R580"),
        f"minimum_driver of {AT} is 'R580'; give a driver branch or version, such as '580'",
    ),
    (
        changed(minimum_cuda_version="cu130"),
        f"minimum_cuda_version of {AT} is 'cu130'; give a CUDA version, such as '13.0'",
    ),
    (changed(cpu_flags="avx2"), f"cpu_flags of {AT} is 'avx2'; give a list of texts (quote numbers)"),
]


@pytest.mark.parametrize(("book", "sentence"), WRONG, ids=[row[1][:70] for row in WRONG])
def test_a_wrong_entry_is_refused_in_one_sentence(book, sentence):
    with pytest.raises(PlanError) as refused:
        plan_node(MACHINES["cpu"], {"host": "gpu-02", "llamacpp_model": "qwen3-8b"}, book)
    assert str(refused.value) == f"gpu-02: {sentence}"


def test_all_wrong_values_of_an_engine_are_told_at_once():
    book = changed({"port": 0, "features": ["batching"]}, tag="server-cuda", order="first", formats={"fp8": 8.9})
    book["engines"]["llamacpp"]["variants"]["other"] = {"tier": "gpu"}
    with pytest.raises(PlanError) as refused:
        Catalog("h", book).engine("llamacpp")
    assert [problem.partition(" is ")[0] for problem in refused.value.problems] == [
        "h: port of inference_engines.llamacpp",
        "h: features of inference_engines.llamacpp",
        f"h: tag of {AT}",
        f"h: order of {AT}",
        f"h: fp8 of formats of {AT}",
        "h: tier of inference_engines.llamacpp.variants.other",
    ]


def test_a_moving_tag_is_right_with_its_digest():
    book = changed(tag="server-cuda", digest=DIGEST)
    service = plan_node(MACHINES["rtx3090"], {"host": "h", "llamacpp_model": "qwen3-8b"}, book)["services"][0]
    assert service["image"] == f"ghcr.io/ggml-org/llama.cpp@{DIGEST}"


def test_a_wrong_entry_of_another_engine_stops_nothing():
    book = copy.deepcopy(CATALOG)
    book["engines"]["vllm"]["variants"]["cuda"]["tag"] = "latest"
    assert plan_node(MACHINES["h100"], {"host": "h", "llamacpp_model": "qwen3-8b"}, book)["services"]
    assert [engine.name for engine in Catalog("h", book).sound_engines()] == ["llamacpp", "ollama", "sglang"]
