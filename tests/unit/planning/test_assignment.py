# SPDX-License-Identifier: Apache-2.0
"""Which service goes on which units."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.planning.assignment import (
    HOST,
    Assignment,
    Candidate,
    Wanted,
    assign,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import UNIT_SHARE, Demand, Unit
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_machines import GIB

HUGE = 2000 * GIB


def unit(index: int, memory: float | None = 80, **changes: Any) -> Unit:
    size = None if memory is None else int(memory * GIB)
    reach, mode = changes.pop("reach", None), changes.pop("mode", "default")
    facts = {"pci_bus_id": f"0000:{index + 1:02x}:00.0", "memory_total_bytes": reach or size, "compute_mode": mode}
    base: dict[str, Any] = {
        "identity": f"GPU-{index}",
        "kind": "gpu",
        "title": f"GPU {index} (H100)",
        "index": index,
        "vendor": "nvidia",
        "architecture": "9.0",
        "memory_bytes": size,
        "unified": size is None,
        "numa_node": 0,
        "domain": 0,
        "link": "nvlink",
        "device": facts,
    }
    return Unit(**{**base, **changes})


def part(index: int, memory: float = 10, **changes: Any) -> Unit:
    return unit(index, memory, kind="mig", domain=None, link=None, identity=f"MIG-{index}", **changes)


def candidate(count: int, smallest: float, useful: float | None = None, host: float = 0) -> Candidate:
    """Return a candidate; sizes in GiB of each unit."""
    low, high = (Demand(int(size * GIB), 0, 0, host=int(host * GIB)) for size in (smallest, useful or smallest))
    return Candidate(count, low, high)


def service(name: str, *candidates: Candidate, backend: str = "vllm", **changes: Any) -> Wanted:
    return Wanted(name, backend, candidates, **changes)


def places(wanted: Sequence[Wanted], units: Sequence[Unit], host: int = HUGE) -> dict[str, list[str]]:
    """Return the units' identities by service; all must have a place."""
    found = assign(wanted, units, host)
    assert not found.refused
    return {name: [item.identity for item in place.units] for name, place in found.places.items()}


def problem(name: str, wanted: Sequence[Wanted], units: Sequence[Unit], host: int = HUGE) -> str:
    return assign(wanted, units, host).refused[name].problem


# the smallest number of units


def test_the_smallest_count_on_which_the_useful_setting_fits() -> None:
    spread = service("a", candidate(1, 60, 90), candidate(2, 32, 50), candidate(4, 18, 30))
    assert places([spread], [unit(index) for index in range(4)]) == {"a": ["GPU-0", "GPU-1"]}


def test_else_the_smallest_on_which_the_acceptable_one_fits() -> None:
    spread = service("a", candidate(1, 90, 190), candidate(2, 50, 95), candidate(4, 30, 90))
    found = assign([spread], [unit(index) for index in range(4)], HUGE)
    assert [item.index for item in found.places["a"].units] == [0, 1]
    assert not found.places["a"].useful
    assert found.places["a"].candidate.count == 2


def test_a_wished_count_is_kept() -> None:
    spread = service("a", candidate(1, 10), candidate(2, 6), candidate(4, 4), count=4)
    assert places([spread], [unit(index) for index in range(8)]) == {"a": [f"GPU-{index}" for index in range(4)]}
    assert problem("a", [replace(spread, count=3)], [unit(0)]) == "can be spread over 1 or 2 or 4 GPUs, and 3 is wished"


def test_nothing_to_choose_from_is_refused() -> None:
    assert "no" in problem("a", [service("a", pins=("GPU-0",))], [unit(0)])
    assert problem("b", [service("b", candidate(1, 1))], []) == (
        "needs a GPU that an image of vllm serves, and this node has none"
    )


# which units


def test_only_allowed_units_are_used() -> None:
    units = [unit(0, architecture="7.0"), unit(1)]
    assert places([service("a", candidate(1, 10), allowed=frozenset(["GPU-1"]))], units) == {"a": ["GPU-1"]}
    assert "none" in problem("a", [service("a", candidate(1, 10), allowed=frozenset())], units)


def test_a_group_is_of_one_architecture_memory_and_domain() -> None:
    need = service("a", candidate(2, 30))
    for other in (unit(1, architecture="8.0"), unit(1, 82), unit(1, domain=1), unit(1, vendor="amd")):
        assert problem("a", [need], [unit(0), other]) == (
            "needs 2 GPUs of one architecture, memory size and link domain, and this node has at most 1 such; "
            "pin it to 2 GPUs to spread it over link domains"
        )
    assert places([need], [unit(0), unit(1, 81)]) == {"a": ["GPU-0", "GPU-1"]}


def test_of_three_sizes_the_two_that_are_alike_make_a_group() -> None:
    units = [unit(0, 80), unit(1, 100), unit(2, 101)]
    assert places([service("a", candidate(2, 30))], units) == {"a": ["GPU-1", "GPU-2"]}


@pytest.mark.parametrize("kind", ["mig", "partition"])
def test_instances_are_never_grouped(kind: str) -> None:
    units = [replace(part(index), kind=kind, domain=0, link="nvlink", identity=f"x#{index}") for index in range(4)]
    need = service("a", candidate(2, 2))
    assert "a" in assign([need], units, HUGE).refused
    assert "cannot be used together with others" in problem("a", [replace(need, pins=("x#0", "x#1"))], units)
    assert places([service("a", candidate(1, 2))], units) == {"a": ["x#0"]}


@pytest.mark.parametrize(("first", "second"), [("pcie", "xgmi"), ("xgmi", "nvlink"), ("pcie", "nvlink")])
def test_the_faster_link_is_taken(first: str, second: str) -> None:
    units = [unit(index, link=first if index < 2 else second, domain=index // 2) for index in range(4)]
    assert places([service("a", candidate(2, 30))], units) == {"a": ["GPU-2", "GPU-3"]}


def test_one_numa_node_comes_before_several() -> None:
    units = [unit(index, numa_node=node) for index, node in enumerate([0, 1, 1, 0])]
    assert places([service("a", candidate(2, 30))], units) == {"a": ["GPU-0", "GPU-3"]}
    assert places([service("a", candidate(4, 30))], units) == {"a": [f"GPU-{index}" for index in range(4)]}


def test_an_engine_that_spreads_layers_may_use_different_gpus() -> None:
    units = [unit(0, 24, architecture="8.6"), unit(1, 24, architecture="8.9", domain=1)]
    layers = service("a", candidate(2, 20), backend="llamacpp", alike=False)
    assert places([layers], units) == {"a": ["GPU-0", "GPU-1"]}
    assert "a" in assign([replace(layers, alike=True)], units, HUGE).refused
    alike = [*units, unit(2, 24, architecture="8.9", domain=1)]
    assert places([layers], alike) == {"a": ["GPU-1", "GPU-2"]}


def test_equal_services_go_by_name() -> None:
    wanted = [service("b", candidate(1, 10)), service("a", candidate(1, 10))]
    expected = {"a": ["GPU-1"], "b": ["GPU-0"]}
    for listed in (wanted, wanted[::-1]):
        assert places(listed, [unit(0, 40), unit(1, 80)]) == expected


# beside others


def test_empty_units_come_before_shared_ones() -> None:
    units = [unit(0), unit(1, 40)]
    wanted = [service("a", candidate(1, 20)), service("b", candidate(1, 10))]
    assert places(wanted, units) == {"a": ["GPU-0"], "b": ["GPU-1"]}


def test_who_fits_beside_another_is_not_refused() -> None:
    found = assign([service("a", candidate(1, 40, 73)), service("b", candidate(1, 30))], [unit(0)], HUGE)
    assert {name: place.beside for name, place in found.places.items()} == {"a": ("b",), "b": ("a",)}
    # Both keep their acceptable setting; the useful one of a does not fit any more.
    assert not found.places["a"].useful


def test_a_greedy_choice_is_taken_back_when_it_leaves_another_one_without() -> None:
    # The first is best on the larger GPU, which the second alone could use.
    small = frozenset(["GPU-0"])
    wanted = [service("a", candidate(1, 50)), service("b", candidate(1, 45), allowed=small)]
    assert places(wanted, [unit(0, 80), unit(1, 60)]) == {"a": ["GPU-1"], "b": ["GPU-0"]}


def test_a_large_group_shrinks_when_another_one_needs_the_room() -> None:
    wanted = [service("a", candidate(1, 60, 90), candidate(2, 45, 50)), service("b", candidate(1, 40))]
    assert places(wanted, [unit(0), unit(1)]) == {"a": ["GPU-0"], "b": ["GPU-1"]}


def test_an_exclusive_gpu_is_not_shared() -> None:
    wanted = [service("a", candidate(1, 10)), service("b", candidate(1, 5))]
    assert places(wanted, [unit(0)]) == {"a": ["GPU-0"], "b": ["GPU-0"]}
    assert list(assign(wanted, [unit(0, mode="exclusive_process")], HUGE).refused) == ["b"]


def test_the_share_of_a_unit_is_the_limit() -> None:
    full = int(80 * GIB * UNIT_SHARE)
    fits, more = (Candidate(1, Demand(size, 0, 0), Demand(size, 0, 0)) for size in (full, full + 1))
    assert places([service("a", fits)], [unit(0)]) == {"a": ["GPU-0"]}
    assert "a" in assign([service("a", more)], [unit(0)], HUGE).refused


# the host's memory


def test_on_a_cpu_all_share_the_host() -> None:
    wanted = [service(name, candidate(0, 10, host=2)) for name in "abc"]
    assert places(wanted, [], 36 * GIB) == {"a": [], "b": [], "c": []}
    found = assign(wanted, [], 35 * GIB)
    assert found.refused["c"].problem == "needs 12.0 GiB of host memory and 11.0 GiB can be used beside a, b"


def test_on_a_cpu_who_runs_already_keeps_its_memory() -> None:
    wanted = [service("small", candidate(0, 10), current=(HOST,)), service("large", candidate(0, 20))]
    assert list(assign(wanted, [], 25 * GIB).places) == ["small"]


def test_unified_memory_is_the_host_s() -> None:
    need = service("a", candidate(1, 50, host=4))
    assert places([need], [unit(0, None)], 54 * GIB) == {"a": ["GPU-0"]}
    assert problem("a", [need], [unit(0, None)], 53 * GIB) == "needs 54.0 GiB of host memory and 53.0 GiB can be used"


def test_a_gpu_that_reaches_a_part_of_the_host_s_memory_gives_no_more() -> None:
    need = service("a", candidate(1, 50))
    found = assign([need], [unit(0, None, reach=32 * GIB)], HUGE).refused["a"]
    assert (found.needs, found.available) == (50 * GIB, int(32 * GIB * UNIT_SHARE))


def test_memory_beside_the_gpus_can_be_what_lacks() -> None:
    wanted = [service("a", candidate(1, 20, host=10)), service("b", candidate(1, 10, host=10))]
    found = assign(wanted, [unit(0), unit(1)], 15 * GIB).refused["b"]
    assert found.problem == "needs 10.0 GiB of host memory and 5.0 GiB can be used beside a"
    assert (found.needs, found.available, found.where, found.beside) == (10 * GIB, 5 * GIB, "host memory", ("a",))


def test_every_unit_of_a_group_takes_its_part_of_unified_memory() -> None:
    units = [unit(0, None), unit(1, None)]
    need = service("a", candidate(2, 30, host=4))
    assert places([need], units, 64 * GIB) == {"a": ["GPU-0", "GPU-1"]}
    assert problem("a", [need], units, 63 * GIB) == "needs 64.0 GiB of host memory and 63.0 GiB can be used"


# pins


def test_pins_are_kept_in_their_order() -> None:
    need = service("a", candidate(1, 10), candidate(2, 6), pins=("GPU-3", "GPU-1"))
    assert places([need], [unit(index) for index in range(4)]) == {"a": ["GPU-3", "GPU-1"]}


def test_pins_may_cross_link_domains() -> None:
    units = [unit(0, link="pcie"), unit(1, link="pcie", domain=1)]
    assert places([service("a", candidate(2, 10), pins=("GPU-0", "GPU-1"))], units) == {"a": ["GPU-0", "GPU-1"]}


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        (("GPU-9",), "is pinned to GPU-9, which is no unit of this node"),
        (("GPU-0", "GPU-0"), "is pinned to GPU 0 (H100) twice; name it once"),
        (("GPU-0", "GPU-1", "GPU-2"), "is pinned to 3 GPUs and can be spread over 1 or 2 GPUs"),
        (("GPU-3",), "is pinned to GPU 3 (H100), which no image of vllm serves"),
        (
            ("GPU-0", "GPU-2"),
            "is pinned to GPU 0 (H100), GPU 2 (H100): "
            "vllm needs GPUs of one architecture and memory size to use them together",
        ),
        (("GPU-4",), "needs 30.0 GiB of memory on GPU 4 (H100) and 9.2 GiB can be used"),
        (("GPU-0", "GPU-1"), "needs 75.0 GiB of memory on each of 2 GPUs and 73.6 GiB can be used"),
    ],
)
def test_pins_that_cannot_be_kept_are_refused(pins: tuple[str, ...], words: str) -> None:
    units = [unit(0), unit(1), unit(2, 40), unit(3), unit(4, 10)]
    allowed = frozenset(f"GPU-{index}" for index in (0, 1, 2, 4))
    need = service("a", candidate(1, 30), candidate(2, 75), pins=pins, allowed=allowed)
    assert problem("a", [need], units) == words


def test_a_pinned_service_comes_before_one_that_runs_there() -> None:
    wanted = [service("a", candidate(1, 50), current=("GPU-0",)), service("b", candidate(1, 40), pins=("GPU-0",))]
    assert places(wanted, [unit(0), unit(1)]) == {"a": ["GPU-1"], "b": ["GPU-0"]}


# staying


def test_who_runs_stays() -> None:
    spread = [candidate(1, 30), candidate(2, 20)]
    wanted = [service("a", *spread, current=("GPU-3", "GPU-1")), service("b", candidate(1, 60), current=("GPU-0",))]
    units = [unit(index) for index in range(4)]
    assert places(wanted, units) == {"a": ["GPU-3", "GPU-1"], "b": ["GPU-0"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"current": ("GPU-9",)},
        {"current": ("GPU-1",), "allowed": frozenset(["GPU-0"])},
        {"current": ("GPU-1",), "pins": ("GPU-0",)},
        {"current": ("GPU-2",)},
        {"current": ("GPU-1", "GPU-1")},
        {"current": ("GPU-0", "GPU-1"), "count": 1},
    ],
)
def test_who_cannot_stay_goes_where_it_would_go_anew(changes: dict[str, Any]) -> None:
    units = [unit(0), unit(1), unit(2, 10)]
    assert places([service("a", candidate(1, 30), candidate(2, 20), **changes)], units) == {"a": ["GPU-0"]}


def test_the_order_of_the_starts() -> None:
    backends = {"a": "ollama", "b": "llamacpp", "c": "sglang", "d": "vllm", "e": "vllm"}
    wanted = [service(name, candidate(1, 5), backend=backend) for name, backend in backends.items()]
    found = assign(wanted, [unit(0), unit(1)], HUGE)
    assert found.start_order == ("d", "e", "c", "b", "a")
    for identity in ("GPU-0", "GPU-1"):
        here = {name for name, place in found.places.items() if place.units[0].identity == identity}
        assert found.on(identity) == tuple(name for name in found.start_order if name in here)


# whatever the machine and the services

sizes = st.sampled_from([8, 16, 24, 24.2, 40, 80])
whole_units = st.builds(
    lambda memory, architecture, domain, node, mode: {
        "memory": memory,
        "architecture": architecture,
        "domain": domain,
        "numa_node": node,
        "link": ["nvlink", "xgmi", "pcie"][domain],
        "mode": mode,
    },
    st.one_of(st.none(), sizes),
    st.sampled_from(["8.6", "9.0"]),
    st.integers(0, 2),
    st.sampled_from([None, 0, 1]),
    st.sampled_from(["default", "default", "exclusive_process"]),
)
part_units = st.builds(lambda memory: {"memory": memory, "kind": "mig", "domain": None, "link": None}, sizes)
machines = st.lists(st.one_of(whole_units, whole_units, part_units), max_size=7).map(
    lambda found: [unit(index, **changes) for index, changes in enumerate(found)]
)
candidates = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 3, 4]), st.integers(1, 60), st.integers(0, 40), st.integers(0, 4)),
    min_size=1,
    max_size=3,
    unique_by=lambda item: item[0],
).map(lambda found: [candidate(count, low, low + more, host) for count, low, more, host in sorted(found)])
identities = st.integers(0, 7).map(lambda index: f"GPU-{index}")


@st.composite
def services(draw: st.DrawFn, most: int = 5) -> list[Wanted]:
    found = []
    for name in "abcdefgh"[: draw(st.integers(1, most))]:
        some = st.lists(identities, max_size=3).map(tuple)
        found.append(
            service(
                name,
                *draw(candidates),
                backend=draw(st.sampled_from(["vllm", "sglang", "llamacpp", "ollama"])),
                pins=draw(st.one_of(st.just(()), st.just(()), some)),
                current=draw(some),
                count=draw(st.one_of(st.none(), st.none(), st.integers(0, 4))),
                allowed=draw(st.one_of(st.none(), st.none(), st.frozensets(identities))),
                alike=draw(st.booleans()),
            )
        )
    return found


hosts = st.integers(0, 200).map(lambda size: size * GIB)


def check(found: Assignment, wanted: Sequence[Wanted], units: Sequence[Unit], host: int) -> None:
    by_name = {item.name: item for item in wanted}
    assert sorted([*found.places, *found.refused]) == sorted(by_name)
    assert sorted(found.start_order) == sorted(found.places)
    taken = dict.fromkeys((item.identity for item in units), 0)
    soft = dict(taken)
    host_taken = host_soft = 0
    for name, place in found.places.items():
        own, low, high = by_name[name], place.candidate.smallest, place.candidate.useful
        ids = [item.identity for item in place.units]
        assert place.candidate in own.candidates
        assert place.candidate.count == len(ids) == len(set(ids))
        assert own.count in (None, len(ids))
        assert own.allowed is None or set(ids) <= own.allowed
        assert not own.pins or tuple(ids) == own.pins
        if len(ids) > 1:
            assert {item.kind for item in place.units} == {"gpu"}
            if own.alike:
                assert len({item.architecture for item in place.units}) == 1
                memory = [item.memory_bytes or 0 for item in place.units]
                assert max(memory) <= min(memory) * 1.02
                assert own.pins or own.current or len({item.domain for item in place.units}) == 1
        spread = sum(1 for item in place.units if item.unified) if ids else 1
        host_taken += low.host + spread * low.total
        host_soft += (high if place.useful else low).host + spread * (high if place.useful else low).total
        for identity in ids:
            taken[identity] += low.total
            soft[identity] += (high if place.useful else low).total
        others = {other for other in found.places if set(ids) & {item.identity for item in found.places[other].units}}
        assert set(place.beside) == others - {name}
    assert host_taken <= host
    assert host_soft <= host
    for item in units:
        if not item.unified:
            assert taken[item.identity] <= item.budget
            assert soft[item.identity] <= item.budget
        if item.device["compute_mode"] != "default":
            assert len(found.on(item.identity)) <= 1
    for refused in found.refused.values():
        assert refused.needs is None or refused.needs > (refused.available or 0)


@settings(max_examples=300, deadline=None)
@given(services(), machines, hosts)
def test_budgets_hold_and_every_service_is_placed_once_or_refused(
    wanted: list[Wanted], units: list[Unit], host: int
) -> None:
    check(assign(wanted, units, host), wanted, units, host)


@settings(max_examples=300, deadline=None)
@given(services(), machines, hosts, st.randoms())
def test_the_order_of_the_lists_changes_nothing(
    wanted: list[Wanted], units: list[Unit], host: int, chance: random.Random
) -> None:
    found = assign(wanted, units, host)
    chance.shuffle(wanted)
    chance.shuffle(units)
    assert assign(wanted, units, host) == found


def settled(found: Assignment, wanted: Sequence[Wanted]) -> list[Wanted]:
    """Return the placed services as they run once the assignment is applied."""
    return [
        replace(item, current=tuple(on.identity for on in found.places[item.name].units) or (HOST,))
        for item in wanted
        if item.name in found.places
    ]


@settings(max_examples=300, deadline=None)
@given(services(4), services(3), machines, hosts)
def test_adding_services_moves_none_that_runs(
    wanted: list[Wanted], more: list[Wanted], units: list[Unit], host: int
) -> None:
    first = assign(wanted, units, host)
    before = settled(first, wanted)
    added = [replace(item, name=f"new-{item.name}", pins=(), current=()) for item in more]
    after = assign([*before, *added], units, host)
    for item in before:
        assert after.places[item.name].units == first.places[item.name].units


@settings(max_examples=300, deadline=None)
@given(services(5), machines, hosts, st.data())
def test_removing_services_moves_none_that_runs(
    wanted: list[Wanted], units: list[Unit], host: int, data: st.DataObject
) -> None:
    first = assign(wanted, units, host)
    left = [item for item in settled(first, wanted) if data.draw(st.booleans())]
    after = assign(left, units, host)
    assert {name: place.units for name, place in after.places.items()} == {
        item.name: first.places[item.name].units for item in left
    }


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20), st.integers(0, 4)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(8, 48), st.integers(0, 30)), min_size=1, max_size=4),
    hosts,
    st.integers(0, 50),
)
def test_where_all_have_a_place_more_memory_leaves_all_one(
    needs: list[tuple[int, int, int]], memory: list[tuple[int, int]], host: int, more: int
) -> None:
    wanted = [
        service(str(number), candidate(1, low, low + extra, beside))
        for number, (low, extra, beside) in enumerate(needs)
    ]
    if assign(wanted, [unit(index, size) for index, (size, _) in enumerate(memory)], host).refused:
        return
    larger = [unit(index, size + growth) for index, (size, growth) in enumerate(memory)]
    assert not assign(wanted, larger, host + more * GIB).refused


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([(1,), (1, 2), (2,), (2, 4), (1, 2, 4)]), st.integers(5, 60)), max_size=4),
    st.sampled_from([2, 4, 8]),
    st.integers(16, 80),
    st.integers(0, 80),
)
def test_where_all_have_a_place_on_alike_gpus_more_memory_leaves_all_one(
    needs: list[tuple[tuple[int, ...], int]], count: int, memory: int, growth: int
) -> None:
    wanted = [
        service(str(number), *(candidate(spread, need / spread + 1, 2 * need / spread) for spread in counts))
        for number, (counts, need) in enumerate(needs)
    ]
    if assign(wanted, [unit(index, memory) for index in range(count)], HUGE).refused:
        return
    assert not assign(wanted, [unit(index, memory + growth) for index in range(count)], HUGE).refused


@settings(max_examples=300, deadline=None)
@given(candidates, machines.filter(bool), hosts)
def test_one_service_is_refused_only_where_no_unit_has_room(
    found: list[Candidate], units: list[Unit], host: int
) -> None:
    one = [item for item in found if item.count < 2]
    refused = "a" in assign([service("a", *one)], units, host).refused
    fits = any(
        item.smallest.host + (item.smallest.total if item.count == 0 else 0) <= host
        if item.count == 0
        else any(
            item.smallest.host + (item.smallest.total if on.unified else 0) <= host
            and (on.unified or item.smallest.total <= on.budget)
            for on in units
        )
        for item in one
    )
    assert refused == (not fits)


# time


def seconds(wanted: Sequence[Wanted], units: Sequence[Unit], host: int = HUGE) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assign(wanted, units, host)
        times.append(time.perf_counter() - started)
    return min(times)


COUNTS = [candidate(count, 100 / count + 2, 160 / count + 2) for count in (1, 2, 4, 8)]


def test_eight_gpus_and_four_services_take_milliseconds() -> None:
    units = [unit(index, numa_node=index // 4) for index in range(8)]
    assert seconds([service(name, *COUNTS) for name in "abcd"], units) < 0.005


@pytest.mark.parametrize("spare", [0, 1])
def test_sixteen_different_units_explode_nowhere(spare: int) -> None:
    # All in one domain and within 2 %, every one with another size; one service too many to fit makes it search.
    units = [unit(index, 80 + index / 16, numa_node=index // 4) for index in range(16)]
    wanted = [service(str(number), candidate(2, 60), candidate(8, 50)) for number in range(9 - spare)]
    found = assign(wanted, units, HUGE)
    assert len(found.refused) == 1 - spare
    assert seconds(wanted, units) < 0.5
