# SPDX-License-Identifier: Apache-2.0
"""Which service goes on which units: who was pinned or runs there already comes first, then the larger need.

What is guaranteed:

* The acceptable settings of all services on a unit, and of all on the host, stay within its budget.
* The order in which services and units are listed changes nothing.
* A service that runs on units where it still fits stays there, whatever is added beside it.
* A service is refused only when no arrangement of those that come before it leaves room for it. So where all services
  have a place, more memory leaves all of them one, provided that the same ones are pinned or stay, and that GPUs which
  were alike still are. Both end where ``SEARCH_STEPS`` or ``_GROUPS`` cuts the search off, which takes many services
  on units that are all different.

Refusing one service may make room for a smaller one; with more memory the larger one fits, and the smaller one may not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from ansible_collections.fleet.inference.plugins.module_utils.planning.core import UNIT_SHARE, Demand, Unit
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import size_text
from ansible_collections.fleet.inference.plugins.module_utils.planning.units import sort_key

#: How much more memory than the smallest the largest GPU of a group may have. GPUs of one product differ by what the
#: firmware keeps (retired pages, ECC), by less than that; a group uses of each what the smallest has.
ALIKE = 1.02
#: Which engine starts first on a shared unit: vLLM wants its share of the whole memory to be free, SGLang and llama.cpp
#: measure what is free when they start, Ollama measures anew at every load.
START_ORDER = ("vllm", "sglang", "llamacpp", "ollama")
#: What ``Wanted.current`` names for a service that runs in the host's memory alone.
HOST = "host"
#: How many places are tried for all services of a node together once the first choice left one without.
SEARCH_STEPS = 400

#: How many groups of one size and one set of alike GPUs are compared.
_GROUPS = 24
_LINKS = ("nvlink", "xgmi", "pcie")
_EXCLUSIVE = ("exclusive_process", "exclusive_thread")


@dataclass(frozen=True)
class Candidate:
    """One number of units that a service can be spread over, and what it takes of each with two settings.

    ``smallest`` is for the smallest acceptable setting, ``useful`` for the one that the service is meant to have, which
    takes no less. ``count`` 0 means the host's memory alone.
    """

    count: int
    smallest: Demand
    useful: Demand


@dataclass(frozen=True)
class Wanted:
    """A service that wants a place.

    ``candidates`` ascend by count. ``pins``, ``current`` (where it runs now, ``HOST`` for the host's memory alone) and
    ``allowed`` (None for all units) are identities of units. Without ``alike`` the engine spreads whole layers, and its
    GPUs may differ and be of several link domains; with it they compute every layer together.
    """

    name: str
    backend: str
    candidates: tuple[Candidate, ...]
    pins: tuple[str, ...] = ()
    count: int | None = None
    current: tuple[str, ...] = ()
    allowed: frozenset[str] | None = None
    alike: bool = True


@dataclass(frozen=True)
class Place:
    """Where a service goes. ``units`` is empty for the host's memory alone.

    ``useful`` tells that the useful setting fits beside what the others were given. ``beside`` are the other services
    on its units, ``reason`` says why it is there.
    """

    candidate: Candidate
    units: tuple[Unit, ...]
    useful: bool
    beside: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Refused:
    """Why a service has no place. ``problem`` is a clause that follows the service's name.

    ``needs`` and ``available`` are bytes of ``where``, for the place that comes closest; None where no memory is
    lacking. ``beside`` are the services that hold the rest.
    """

    problem: str
    needs: int | None = None
    available: int | None = None
    where: str | None = None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """All places and refusals by service; ``start_order`` lists the placed services in the order of their starts."""

    places: Mapping[str, Place]
    refused: Mapping[str, Refused]
    start_order: tuple[str, ...]

    def on(self, identity: str) -> tuple[str, ...]:
        """Return the services of a unit in the order of their starts."""
        return tuple(
            name for name in self.start_order if any(unit.identity == identity for unit in self.places[name].units)
        )


def assign(wanted: Iterable[Wanted], units: Iterable[Unit], host_budget: int) -> Assignment:
    """Give every service its units, or say why it gets none.

    The choice is, in this order: the smallest number of units on which the useful setting fits, else the smallest on
    which the acceptable one does; empty units; not to squeeze the others; NVLink before xGMI before PCIe; one NUMA
    node; the units with the most free memory; the first ones.

    Args:
        wanted: The services; their names differ.
        units: Units of the node.
        host_budget: Bytes of the host's memory that all services may take together.
    """
    services = sorted(wanted, key=_priority)
    board = _Board(sorted(units, key=sort_key), host_budget, services)
    grants: dict[str, _Grant] = {}
    refused: dict[str, Refused] = {}
    free: list[Wanted] = []
    for service in services:
        if service.pins:
            found = _pinned(board, service)
            if isinstance(found, Refused):
                refused[service.name] = found
            elif found is not None:
                grants[service.name] = board.take(found)
    for service in services:
        if not service.pins:
            stay = _stay(board, service)
            if stay is None:
                free.append(service)
            else:
                grants[service.name] = board.take(stay)
    grants.update(_Search(board, free).run())
    for service in services:
        if service.name not in grants and service.name not in refused:
            refused[service.name] = _closest(board, service)
    by_name = {service.name: service for service in services}
    order = sorted(grants, key=lambda name: _start_key(by_name[name]))
    places = {name: board.place(grants[name]) for name in sorted(grants)}
    return Assignment(places, {name: refused[name] for name in sorted(refused)}, tuple(order))


@dataclass(frozen=True)
class _Grant:
    """A choice: candidate and units (positions on the board), and whether the useful setting is given."""

    service: Wanted
    candidate: Candidate
    members: tuple[int, ...]
    useful: bool
    reason: str = ""

    @property
    def soft(self) -> Demand:
        return self.candidate.useful if self.useful else self.candidate.smallest


@dataclass
class _Board:
    """What is taken of every unit and of the host: ``hard`` by acceptable settings, ``soft`` by the given ones."""

    units: Sequence[Unit]
    host_budget: int
    services: Sequence[Wanted]
    caps: list[int | None] = field(init=False)
    hard: list[int] = field(init=False)
    soft: list[int] = field(init=False)
    residents: list[list[str]] = field(init=False)
    host_hard: int = 0
    host_soft: int = 0
    host_users: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.caps = [_cap(unit) for unit in self.units]
        self.hard = [0] * len(self.units)
        self.soft = [0] * len(self.units)
        self.residents = [[] for _ in self.units]
        self._exclusive = [unit.device.get("compute_mode") in _EXCLUSIVE for unit in self.units]
        self._positions = {unit.identity: position for position, unit in enumerate(self.units)}
        self._allowed = {service.name: self._allowed_of(service) for service in self.services}
        # Units that are equal here, and whose accounts are equal, can stand for each other.
        looks = [
            (*_kind(unit), _memory(unit), unit.unified, unit.kind, unit.domain, unit.numa_node, exclusive, users)
            for position, (unit, exclusive) in enumerate(zip(self.units, self._exclusive, strict=True))
            for users in [tuple(position in self._allowed[service.name] for service in self.services)]
        ]
        self._looks = [looks.index(look) for look in looks]

    def _allowed_of(self, service: Wanted) -> frozenset[int]:
        names = self._positions if service.allowed is None else service.allowed
        return frozenset(position for identity, position in self._positions.items() if identity in names)

    def allowed(self, service: Wanted) -> list[int]:
        """Return the positions of the units that a service may use."""
        return sorted(self._allowed[service.name])

    def position(self, identity: str) -> int | None:
        return self._positions.get(identity)

    def host_need(self, demand: Demand, members: Sequence[int]) -> int:
        """Return the bytes of the host: what is beside the units, and all of it where the memory is the host's."""
        own = sum(1 for position in members if self.units[position].unified) if members else 1
        return demand.host + own * demand.total

    def room(self, position: int) -> int:
        """Return the bytes that acceptable settings leave of a unit, as far as the unit's own memory goes."""
        if self._exclusive[position] and self.residents[position]:
            return 0
        cap = self.caps[position]
        return (self.host_budget if cap is None else cap) - self.hard[position]

    def fits(self, candidate: Candidate, members: Sequence[int]) -> bool:
        """Tell whether the acceptable setting fits beside the acceptable settings of the others."""
        need = candidate.smallest
        if self.host_hard + self.host_need(need, members) > self.host_budget:
            return False
        return all(self.room(position) >= need.total for position in members)

    def fits_beside(self, demand: Demand, members: Sequence[int]) -> bool:
        """Tell whether a setting fits beside the settings that the others were given."""
        if self.host_soft + self.host_need(demand, members) > self.host_budget:
            return False
        for position in members:
            cap = self.caps[position]
            if cap is not None and self.soft[position] + demand.total > cap:
                return False
        return True

    def take(self, grant: _Grant, sign: int = 1) -> _Grant:
        """Account for a choice, or with ``sign`` -1 undo that; returns the choice."""
        hard, soft = grant.candidate.smallest, grant.soft
        for position in grant.members:
            self.hard[position] += sign * hard.total
            self.soft[position] += sign * soft.total
            _enter(self.residents[position], grant.service.name, sign)
        host = self.host_need(hard, grant.members)
        self.host_hard += sign * host
        self.host_soft += sign * self.host_need(soft, grant.members)
        if host:
            _enter(self.host_users, grant.service.name, sign)
        return grant

    def place(self, grant: _Grant) -> Place:
        """Return the place that a choice stands for, once all are made."""
        squeezed = self.host_need(grant.soft, grant.members) and self.host_soft > self.host_budget
        for position in grant.members:
            cap = self.caps[position]
            squeezed = squeezed or (cap is not None and self.soft[position] > cap)
        others = {name for position in grant.members for name in self.residents[position]} - {grant.service.name}
        return Place(
            candidate=grant.candidate,
            units=tuple(self.units[position] for position in grant.members),
            useful=grant.useful and not squeezed,
            beside=tuple(sorted(others)),
            reason=grant.reason,
        )

    def same(self, position: int) -> tuple[object, ...]:
        """Return what two units have in common that can stand for each other."""
        return (
            self._looks[position],
            self.hard[position],
            self.soft[position],
            len(self.residents[position]),
        )

    def classes(self, positions: Iterable[int]) -> list[list[int]]:
        """Return the units in classes of those that can stand for each other, the emptiest first."""
        found: dict[tuple[object, ...], list[int]] = {}
        for position in positions:
            found.setdefault(self.same(position), []).append(position)
        return sorted(found.values(), key=lambda members: (len(self.residents[members[0]]) > 0, -self.left(members)))

    def left(self, members: Sequence[int]) -> int:
        """Return the least free memory of some units beside what others were given."""
        return min(
            (self.host_budget if self.caps[position] is None else self.caps[position] or 0) - self.soft[position]
            for position in members
        )

    def sets(self, service: Wanted, candidate: Candidate, *, fitting: bool = True) -> Iterator[tuple[int, ...]]:
        """Yield the units that a candidate could use, one set for all that can stand for each other.

        Without ``fitting``, yield also what is too full, of each group only the roomiest.
        """
        allowed = self.allowed(service)
        if candidate.count == 0:
            if not fitting or self.fits(candidate, ()):
                yield ()
            return
        if fitting:
            allowed = [position for position in allowed if self.fits(candidate, (position,))]
        if candidate.count == 1:
            yield from ((members[0],) for members in self.classes(allowed))
            return
        for group in self.groups(service, allowed, candidate.count):
            if fitting:
                found = islice(_combinations(self.classes(group), candidate.count), _GROUPS)
                yield from (members for members in found if self.fits(candidate, members))
            else:
                yield tuple(sorted(sorted(group, key=lambda position: -self.room(position))[: candidate.count]))

    def groups(self, service: Wanted, allowed: Sequence[int], count: int) -> Iterator[list[int]]:
        """Yield the largest sets of GPUs that a service could be spread over, whole and of one NUMA node."""
        whole = [position for position in allowed if self.units[position].kind == "gpu"]
        found = []
        for members in _by(whole, lambda position: (self.units[position].domain, *_kind(self.units[position]))):
            found += self._windows(members)
        if not service.alike:
            found += _by(whole, lambda position: (self.units[position].vendor,))
        for members in found:
            nodes = _by(members, lambda position: (self.units[position].numa_node,))
            yield from (group for group in ([*nodes, members] if len(nodes) > 1 else nodes) if len(group) >= count)

    def _windows(self, members: Sequence[int]) -> list[list[int]]:
        """Return the largest sets of GPUs whose memory is almost equal."""
        sizes = {position: _memory(self.units[position]) for position in members}
        found: list[list[int]] = []
        for least in sorted(set(sizes.values())):
            window = [position for position in members if least <= sizes[position] <= least * ALIKE]
            if not found or not set(window) <= set(found[-1]):
                found.append(window)
        return found

    def spread_problem(self, service: Wanted, members: Sequence[int]) -> str | None:
        """Return why a service cannot be spread over some units, None when it can."""
        units = [self.units[position] for position in members]
        if len(units) < 2:
            return None
        part = next((unit for unit in units if unit.kind != "gpu"), None)
        if part is not None:
            return f"{part.title} cannot be used together with others; pin one, or whole GPUs"
        if len({unit.vendor for unit in units}) > 1:
            return "they are of several vendors; pin GPUs of one vendor"
        if service.alike:
            sizes = [_memory(unit) for unit in units]
            if len({_kind(unit) for unit in units}) > 1 or max(sizes) > min(sizes) * ALIKE:
                return f"{service.backend} needs GPUs of one architecture and memory size to use them together"
        return None


class _Search:
    """Places services on a board: the best place for one after another, and back only when one is left without."""

    def __init__(self, board: _Board, services: Sequence[Wanted]) -> None:
        self._board = board
        self._services = services
        self._steps = SEARCH_STEPS

    def run(self) -> dict[str, _Grant]:
        """Return the choices by service; the board holds them. Who is missing has no place."""
        placed: list[Wanted] = []
        grants: list[_Grant] = []
        for service in self._services:
            best = min(self._options(service), key=self._cost, default=None)
            if best is not None:
                grants.append(self._board.take(best))
                placed.append(service)
                continue
            for grant in grants:
                self._board.take(grant, -1)
            attempt = [*placed, service]
            found = self._arrange(attempt) if self._may_fit(attempt) else None
            if found is None:
                for grant in grants:
                    self._board.take(grant)
            else:
                grants, placed = found, attempt
        return {grant.service.name: grant for grant in grants}

    def _arrange(self, services: Sequence[Wanted]) -> list[_Grant] | None:
        """Return the first arrangement of all of some services, which the board then holds; None when there is none."""
        if not services:
            return []
        for grant in sorted(self._options(services[0]), key=self._cost):
            if self._steps <= 0:
                return None
            self._steps -= 1
            self._board.take(grant)
            rest = self._arrange(services[1:])
            if rest is not None:
                return [grant, *rest]
            self._board.take(grant, -1)
        return None

    def _may_fit(self, services: Sequence[Wanted]) -> bool:
        """Tell what needs no search: whether the last one fits alone, and all of them by the sums of memory."""
        board = self._board
        if next(iter(self._options(services[-1])), None) is None:
            return False
        least = sum(min(item.count * item.smallest.total for item in _counts(service)) for service in services)
        host = sum(min(item.smallest.host for item in _counts(service)) for service in services)
        rooms = sum(max(0, board.room(position)) for position in range(len(board.units)))
        return least <= rooms and board.host_hard + host <= board.host_budget

    def _options(self, service: Wanted) -> Iterator[_Grant]:
        seen = set()
        for candidate in _counts(service):
            for members in self._board.sets(service, candidate):
                if (candidate.count, members) not in seen:
                    seen.add((candidate.count, members))
                    useful = self._board.fits_beside(candidate.useful, members)
                    yield _Grant(service, candidate, members, useful, _reason(service, candidate, useful))

    def _cost(self, grant: _Grant) -> tuple[object, ...]:
        board, members = self._board, grant.members
        units = [board.units[position] for position in members]
        shared = sum(1 for position in members if board.residents[position])
        squeezes = not grant.useful and not board.fits_beside(grant.candidate.smallest, members)
        link, nodes = 0, 1
        if len(units) > 1:
            one = len({unit.domain for unit in units}) == 1
            link = _LINKS.index(units[0].link) if one and units[0].link in _LINKS else len(_LINKS)
            nodes = len({unit.numa_node for unit in units})
        left = board.left(members) if members else 0
        return not grant.useful, grant.candidate.count, shared, squeezes, link, nodes, -left, members


def _pinned(board: _Board, service: Wanted) -> _Grant | Refused | None:
    """Return the place that a service is pinned to, why it cannot be, or None when it has no room there."""
    counts = [item.count for item in service.candidates]
    candidate = next((item for item in service.candidates if item.count == len(service.pins)), None)
    members = []
    for identity in service.pins:
        position = board.position(identity)
        if position is None:
            return Refused(f"is pinned to {identity}, which is no unit of this node")
        if position in members:
            return Refused(f"is pinned to {board.units[position].title} twice; name it once")
        if position not in board.allowed(service):
            return Refused(f"is pinned to {board.units[position].title}, which no image of {service.backend} serves")
        members.append(position)
    if counts and (candidate is None or candidate not in _counts(service)):
        return Refused(f"is pinned to {len(members)} {_gpus(len(members))} and can be spread over {_words(counts)}")
    problem = board.spread_problem(service, members)
    if problem is not None:
        titles = ", ".join(board.units[position].title for position in members)
        return Refused(f"is pinned to {titles}: {problem}")
    return None if candidate is None else _at(board, service, candidate, tuple(members), "pinned")


def _stay(board: _Board, service: Wanted) -> _Grant | None:
    """Return the place where a service runs, when it may go on there and fits."""
    current = () if service.current == (HOST,) else service.current
    positions = [board.position(identity) for identity in current]
    members = tuple(position for position in positions if position is not None)
    candidate = next((item for item in _counts(service) if item.count == len(current)), None)
    if not service.current or candidate is None or len(set(members)) != len(current):
        return None
    if not set(members) <= set(board.allowed(service)) or board.spread_problem(service, members):
        return None
    return _at(board, service, candidate, members, "it runs there already")


def _at(board: _Board, service: Wanted, candidate: Candidate, members: tuple[int, ...], reason: str) -> _Grant | None:
    if not board.fits(candidate, members):
        return None
    return _Grant(service, candidate, members, board.fits_beside(candidate.useful, members), reason)


def _closest(board: _Board, service: Wanted) -> Refused:
    """Say what a service lacks, for the place where the least is lacking."""
    candidates = _counts(service)
    if not candidates:
        counts = [item.count for item in service.candidates]
        if not counts:
            return Refused("cannot be spread over any number of this node's units")
        return Refused(f"can be spread over {_words(counts)}, and {service.count} is wished")
    pins = [position for position in (board.position(identity) for identity in service.pins) if position is not None]
    lacks = []
    for candidate in candidates:
        if service.pins and candidate.count != len(pins):
            continue
        sets = [tuple(pins)] if service.pins else board.sets(service, candidate, fitting=False)
        for members in sets:
            short, found = _lack(board, candidate, members)
            lacks.append((short, candidate.count, members, found))
    if lacks:
        return min(lacks, key=lambda item: item[:3])[3]
    return _too_few(board, service, candidates[0])


def _lack(board: _Board, candidate: Candidate, members: tuple[int, ...]) -> tuple[int, Refused]:
    """Return how many bytes are lacking, and the words for it: of a unit where one is too full, else of the host."""
    need = candidate.smallest
    tightest = min(members, key=board.room, default=None)
    if tightest is not None and board.room(tightest) < need.total and not board.units[tightest].unified:
        available, needs = max(0, board.room(tightest)), need.total
        where = f"memory on {board.units[tightest].title}"
        if len(members) > 1:
            where = f"memory on each of {len(members)} GPUs"
        users = board.residents[tightest]
    else:
        needs = board.host_need(need, members)
        available, where, users = max(0, board.host_budget - board.host_hard), "host memory", board.host_users
        if tightest is not None and board.room(tightest) < need.total <= available:
            # The GPU can use only a part of the memory that it shares with the host.
            needs, available = need.total, max(0, board.room(tightest))
            where, users = f"memory on {board.units[tightest].title}", board.residents[tightest]
    beside = tuple(sorted(users))
    others = f" beside {', '.join(beside)}" if beside else ""
    problem = f"needs {size_text(needs)} of {where} and {_size_text(available)} can be used{others}"
    return needs - available, Refused(problem, needs, available, where, beside)


def _too_few(board: _Board, service: Wanted, candidate: Candidate) -> Refused:
    allowed = board.allowed(service)
    if not allowed:
        return Refused(f"needs a GPU that an image of {service.backend} serves, and this node has none")
    if not service.alike:
        whole = sum(1 for position in allowed if board.units[position].kind == "gpu")
        return Refused(f"needs {candidate.count} whole GPUs of one vendor, and this node has {whole} for it")
    groups = [len(group) for group in board.groups(service, allowed, 1)]
    return Refused(
        f"needs {candidate.count} GPUs of one architecture, memory size and link domain, and this node has at most "
        f"{max(groups, default=0)} such; pin it to {candidate.count} GPUs to spread it over link domains"
    )


def _reason(service: Wanted, candidate: Candidate, useful: bool) -> str:
    if candidate.count == 0:
        return "the host's memory"
    count = f"{candidate.count} {_gpus(candidate.count)}"
    if service.count is not None:
        return f"{count}: wished"
    fits = "a useful setting fits" if useful else "any setting fits"
    return f"{count}: the smallest number on which {fits}"


def _counts(service: Wanted) -> list[Candidate]:
    """Return the candidates with the wished number of units, all when none is wished."""
    return [item for item in service.candidates if service.count in (None, item.count)]


def _priority(service: Wanted) -> tuple[bool, bool, int, str]:
    need = min((_bytes(item) for item in _counts(service)), default=0)
    return not service.pins, not service.current, -need, service.name


def _bytes(candidate: Candidate) -> int:
    return max(1, candidate.count) * candidate.smallest.total + candidate.smallest.host


def _start_key(service: Wanted) -> tuple[int, str]:
    known = service.backend in START_ORDER
    return START_ORDER.index(service.backend) if known else len(START_ORDER), service.name


def _cap(unit: Unit) -> int | None:
    """Return the bytes that services may take of a unit; None where only the host's memory bounds it."""
    if not unit.unified:
        return unit.budget
    # An integrated GPU may reach only a part of the host's memory.
    reach = unit.device.get("memory_total_bytes")
    return int(reach * UNIT_SHARE) if isinstance(reach, int) and reach > 0 else None


def _memory(unit: Unit) -> int:
    return unit.memory_bytes or unit.device.get("memory_total_bytes") or 0


def _kind(unit: Unit) -> tuple[str, str]:
    """Return what GPUs that compute together have in common; of an unknown architecture, the product."""
    return unit.vendor, unit.architecture or str(unit.device.get("name"))


def _by(positions: Sequence[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for position in positions:
        groups.setdefault(key(position), []).append(position)
    return list(groups.values())


def _combinations(classes: Sequence[Sequence[int]], count: int) -> Iterator[tuple[int, ...]]:
    """Yield the different ways to take a number of units, in the order of the units, of the first classes first."""
    if count == 0:
        yield ()
        return
    if sum(map(len, classes)) < count:
        return
    first, rest = classes[0], classes[1:]
    for number in range(min(count, len(first)), -1, -1):
        for others in _combinations(rest, count - number):
            yield tuple(sorted((*first[:number], *others)))


def _enter(names: list[str], name: str, sign: int) -> None:
    if sign > 0:
        names.append(name)
    else:
        names.remove(name)


def _gpus(count: int) -> str:
    return "GPU" if count == 1 else "GPUs"


def _words(counts: Sequence[int]) -> str:
    return f"{' or '.join(map(str, counts))} {_gpus(counts[-1])}"


def _size_text(size: int) -> str:
    return size_text(size) if size else "nothing"
