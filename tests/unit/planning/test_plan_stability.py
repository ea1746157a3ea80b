# SPDX-License-Identifier: Apache-2.0
"""A service that runs keeps its units and its port when something else changes."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import MACHINES, catalog, device, facts, gpu_facts

CATALOG = catalog()
H100S = gpu_facts("cuda", [device("NVIDIA H100 80GB HBM3", 81559, "9.0", index=index) for index in range(4)])
TWO_GPUS = gpu_facts("cuda", [device(f"GPU {index}", 24576, "8.6", index=index) for index in range(2)])
UNEQUAL = gpu_facts(
    "cuda", [device(f"GPU {index}", size, "8.6", index=index) for index, size in enumerate([24576, 49140, 24576])]
)
NODES = {**MACHINES, "4 x h100": H100S, "unequal": UNEQUAL}
MODELS = {
    "llamacpp": ["smollm2-135m-instruct", "qwen3-8b", "qwen3-32b"],
    "ollama": ["qwen3-4b", "qwen3-8b"],
    "sglang": ["qwen3-8b", "phi-4"],
    "vllm": ["qwen3-8b", "phi-4", "llama-3.3-70b-instruct"],
}
SMALL = {"backend": "llamacpp", "model": "smollm2-135m-instruct"}


def plan(node: dict[str, Any], services: list[dict[str, Any]], **wishes: Any) -> dict[str, dict[str, Any]]:
    """Return the planned services by name."""
    found = plan_node(node, {"host": "gpu-01", "inference_services": services, **wishes}, CATALOG)
    return {item["name"]: item for item in found["services"]}


def settled(node: dict[str, Any], planned: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the node's facts once the plan is applied: what gpu_facts reads of the services."""
    services = [
        {
            **{key: item[key] for key in ("name", "backend", "model", "address", "port")},
            "units": [unit["identity"] for unit in item["units"]],
        }
        for item in planned.values()
    ]
    return {**node, "services": services}


def units(item: dict[str, Any]) -> list[str]:
    return [unit["identity"] for unit in item["units"]]


def port_decision(item: dict[str, Any]) -> str:
    (found,) = (decision for decision in item["decisions"] if decision.startswith("port "))
    return found


# units


def test_who_runs_stays_where_it_would_not_go_anew() -> None:
    node = settled(H100S, plan(H100S, [{**SMALL, "name": "a"}]))
    last = H100S["devices"][3]["uuid"]
    node["services"][0]["units"] = [last]
    found = plan(node, [{**SMALL, "name": "a"}])["a"]
    assert units(found) == [last]
    assert f"placed on {found['units'][0]['title']}: it runs there already" in found["decisions"]


@pytest.mark.parametrize("change", [{"units": None}, {"name": "b"}, {"backend": "ollama"}])
def test_a_record_that_tells_no_place_of_this_service_binds_nobody(change: dict[str, Any]) -> None:
    record = {"name": "a", "backend": "llamacpp", "port": 8007, "units": [H100S["devices"][3]["uuid"]], **change}
    found = plan({**H100S, "services": [record]}, [{**SMALL, "name": "a"}])["a"]
    assert units(found) == [H100S["devices"][0]["uuid"]]
    assert found["port"] == (8007 if change == {"units": None} else 8005)


def test_on_a_full_cpu_node_the_new_service_is_refused_and_not_the_one_that_runs() -> None:
    running = [{"backend": "llamacpp", "name": "small", "model": "qwen3-8b"}]
    node = settled(facts(), plan(facts(), running))
    large = {"backend": "llamacpp", "name": "large", "model": "qwen3-32b"}
    with pytest.raises(PlanError, match=r"service large needs .* can be used beside small"):
        plan(node, [*running, large])
    # Anew, the larger one comes first.
    with pytest.raises(PlanError, match=r"service small needs .* can be used beside large"):
        plan(facts(), [*running, large])


def test_a_pinned_service_takes_the_room_it_needs() -> None:
    """Who is pinned comes first: what no longer fits beside it moves, and keeps its port."""
    large = {"backend": "llamacpp", "model": "qwen3-32b", "context_length": 32768, "parallel": 4, "name": "a"}
    before = plan(H100S, [large])
    pinned = {**large, "name": "b", "gpus": units(before["a"])}
    after = plan(settled(H100S, before), [large, pinned])
    assert units(after["b"]) == units(before["a"]) != units(after["a"])
    assert after["a"]["port"] == before["a"]["port"]


def test_who_grows_out_of_a_shared_gpu_moves_the_smaller_one() -> None:
    wished = [{"backend": "llamacpp", "model": "qwen3-8b", "name": name, "parallel": 1} for name in ("a", "b")]
    node = settled(UNEQUAL, plan(UNEQUAL, wished))
    shared = UNEQUAL["devices"][0]["uuid"]
    for record in node["services"]:
        record["units"] = [shared]
    assert {name: units(item) for name, item in plan(node, wished).items()} == {"a": [shared], "b": [shared]}
    after = plan(node, [{**wished[0], "context_length": 32768, "parallel": 3}, wished[1]])
    assert units(after["a"]) == [shared] != units(after["b"])
    assert [item["port"] for item in after.values()] == [8005, 8006]


def test_who_runs_moves_where_only_that_makes_room_for_a_new_service() -> None:
    small = {"backend": "llamacpp", "model": "qwen3-4b", "context_length": 4096, "parallel": 1}
    running = [{**small, "name": "a"}, {**small, "name": "b"}]
    node = {**TWO_GPUS, "services": []}
    for name, gpu in (("a", 0), ("b", 1)):
        record = {"name": name, "backend": "llamacpp", "port": 8005 + gpu, "units": [node["devices"][gpu]["uuid"]]}
        node["services"].append(record)
    assert {name: units(item) for name, item in plan(node, running).items()} == {
        record["name"]: record["units"] for record in node["services"]
    }
    large = {"backend": "llamacpp", "model": "qwen3-32b", "quantization": "Q4_K_M", "gpus": 1, "name": "large"}
    after = plan(node, [*running, large])
    assert units(after["a"]) == units(after["b"]) != units(after["large"])
    moved = [name for name in "ab" if any("; it moves from GPU" in text for text in after[name]["decisions"])]
    assert len(moved) == 1
    # Nothing moves for a service that has no room either way.
    with pytest.raises(PlanError, match="service huge needs"):
        plan(node, [*running, {**large, "name": "huge", "context_length": 32768, "parallel": 8}])


# ports


@pytest.mark.parametrize(
    ("running", "services", "wishes", "expected"),
    [
        # The first one is removed, the second one stays.
        ({"b": 8006}, [{"name": "b"}], {}, {"b": "port 8006: as it runs now"}),
        # One is added whose name comes first.
        (
            {"b": 8005},
            [{"name": "a"}, {"name": "b"}],
            {},
            {"a": "port 8006: the first free one from 8005", "b": "port 8005: as it runs now"},
        ),
        # Another one wishes its port.
        (
            {"a": 8005, "b": 8006},
            [{"name": "a"}, {"name": "b"}, {"name": "c", "port": 8005}],
            {},
            {
                "a": "port 8007: the first free one from 8005; it moves from 8005, which service c wishes",
                "b": "port 8006: as it runs now",
                "c": "port 8005: wished",
            },
        ),
        # It wishes another one itself.
        ({"a": 8005}, [{"name": "a", "port": 9000}], {}, {"a": "port 9000: wished"}),
        # A wished port becomes that of the service's own accord.
        ({"a": 8005}, [{"name": "a", "port": 8005}], {}, {"a": "port 8005: wished"}),
        # The backend's first port is another one now, and the default again.
        (
            {"a": 8005},
            [{"name": "a"}],
            {"llamacpp_port": 8015},
            {"a": "port 8015: the first free one from 8015; it moves from 8005"},
        ),
        ({"a": 8015}, [{"name": "a"}], {}, {"a": "port 8005: the first free one from 8005; it moves from 8015"}),
        ({"a": 8015}, [{"name": "a"}], {"llamacpp_port": 8015}, {"a": "port 8015: as it runs now"}),
        # Of two records with one port the first name keeps it; a record without one tells nothing.
        (
            {"a": 8006, "b": 8006, "c": None},
            [{"name": "a"}, {"name": "b"}, {"name": "c"}],
            {},
            {
                "a": "port 8006: as it runs now",
                "b": "port 8005: the first free one from 8005; it moves from 8006",
                "c": "port 8007: the first free one from 8005",
            },
        ),
    ],
)
def test_ports(
    running: dict[str, int | None],
    services: list[dict[str, Any]],
    wishes: dict[str, Any],
    expected: dict[str, str],
) -> None:
    records = [{"name": name, "backend": "llamacpp", "port": port, "units": []} for name, port in running.items()]
    planned = plan(facts(services=records), [{**SMALL, **item} for item in services], **wishes)
    assert {name: port_decision(item) for name, item in planned.items()} == expected


def test_many_services_keep_their_ports_when_half_of_them_go() -> None:
    names = [f"s{number:02d}" for number in range(16)]
    before = plan(H100S, [{**SMALL, "name": name} for name in names])
    kept = names[8:]
    after = plan(settled(H100S, before), [{**SMALL, "name": name} for name in kept])
    assert [after[name]["port"] for name in kept] == [before[name]["port"] for name in kept]


# whatever changes


@st.composite
def wishes(draw: Any, node: str, most: int = 4) -> list[dict[str, Any]]:
    """Up to ``most`` services with names of their own, none pinned and none with a port."""
    backends = st.sampled_from(sorted(MODELS) if NODES[node]["tier"] == "cuda" else ["llamacpp", "ollama"])
    chosen = draw(st.lists(backends, min_size=1, max_size=most))
    return [{"name": f"s{number}", **draw(service(backend))} for number, backend in enumerate(chosen)]


@st.composite
def service(draw: Any, backend: str) -> dict[str, Any]:
    settings = {"context_length": st.sampled_from([512, 4096, 16384]), "parallel": st.sampled_from([1, 2, 8])}
    model = draw(st.sampled_from(MODELS[backend]))
    return {"backend": backend, "model": model, **draw(st.fixed_dictionaries({}, optional=settings))}


@st.composite
def changed(draw: Any, running: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str, str]:
    """Return the services after one change, which change it was, and the name of the service that it is about."""
    position = draw(st.integers(0, len(running) - 1))
    item, others = running[position], [*running[:position], *running[position + 1 :]]
    what = draw(st.sampled_from(["added", "added with its port", "removed", "changed", "renamed"]))
    if what == "removed":
        return others, what, item["name"]
    if what == "changed":
        return [*others, {**draw(service(item["backend"])), "name": item["name"]}], what, item["name"]
    if what == "renamed":
        return [*others, {**item, "name": "a-new"}], what, "a-new"
    new = {**draw(service(draw(st.sampled_from(sorted({one["backend"] for one in running}))))), "name": "a-new"}
    return [*running, new], what, "a-new"


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_one_change_moves_no_other_service_that_need_not(data: st.DataObject) -> None:
    """What has to move: who shares a unit with a service that grew there, and who has a port that another one wishes.

    A service that is added, removed or renamed moves others off their units only when all have no room otherwise.
    """
    name = data.draw(st.sampled_from(sorted(NODES)))
    running = data.draw(wishes(name))
    try:
        before = plan(NODES[name], running)
    except PlanError:
        return
    wished, what, subject = data.draw(changed(running))
    if what == "added with its port":
        taken = data.draw(st.sampled_from([item["port"] for item in before.values()]))
        wished = [{**item, "port": taken} if item["name"] == subject else item for item in wished]
    try:
        after = plan(settled(NODES[name], before), wished)
    except PlanError:
        return
    for other in set(before) & set(after) - {subject}:
        moved_port = after[other]["port"] != before[other]["port"]
        assert moved_port == (what == "added with its port" and before[other]["port"] == after[subject]["port"])
        if units(after[other]) != units(before[other]) and what != "changed":
            stays = {item: units(before[item]) for item in before if item != subject and units(before[item])}
            with pytest.raises(PlanError):
                plan(NODES[name], [{**item, **_pinned(stays.get(item["name"]))} for item in wished])
        elif units(after[other]) != units(before[other]):
            assert set(units(before[other])) & set(units(after[subject]))


def _pinned(identities: list[str] | None) -> dict[str, Any]:
    return {"gpus": identities} if identities else {}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_plan_that_is_applied_changes_nothing(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(NODES)))
    running = data.draw(wishes(name))
    try:
        before = plan(NODES[name], running)
    except PlanError:
        return
    after = plan(settled(NODES[name], before), running)
    for item in (*before.values(), *after.values()):
        item.pop("decisions")
    assert after == before
