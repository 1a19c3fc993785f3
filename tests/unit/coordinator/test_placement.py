"""Where a session goes: who is asked, in which order, and what a refusal means."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from codegen_mcp.coordinator.directory.base import Owner
from codegen_mcp.coordinator.placement import TRIES, Placement, Refused, Wanted
from codegen_mcp.coordinator.worker_view import Load, Registration, Worker
from codegen_mcp.core.errors import Full, NotFound, Unavailable, WorkerError
from codegen_mcp.testing.workers_rig import SilentLink


def worker(name: str, *, total: int = 10, active: int = 0, **facts: object) -> Worker:
    owner = Owner(worker_id=name, incarnation=1)
    made = Worker(owner, Registration(worker_id=name, **facts), start_id="1")  # type: ignore[arg-type]
    made.link = SilentLink(owner)
    made.learn(Load(total=total, active=active))
    return made


def placement(*workers: Worker) -> Placement:
    return Placement(lambda: workers, rng=random.Random(1))


def full(retry_after_s: float | None = None) -> Refused:
    return Refused(Full("no room here", retry_after_s=retry_after_s))


async def name_of(worker: Worker) -> str:
    return worker.worker_id


async def test_the_emptiest_of_three_is_asked_first() -> None:
    workers = [worker("half", active=5), worker("full", active=10), worker("empty", active=1)]
    for _ in range(20):
        assert await placement(*workers).place(Wanted(), name_of) == "empty"
        workers[2].learn(Load(total=10, active=1))


async def test_room_is_counted_in_parts_of_the_whole() -> None:
    small, large = worker("small", total=4, active=1), worker("large", total=100, active=20)
    assert await placement(small, large).place(Wanted(), name_of) == "large"


async def test_many_at_once_are_spread_before_any_of_them_is_made() -> None:
    workers = [worker("small", total=50), worker("large", total=150)]
    chooser, gate = placement(*workers), asyncio.Event()

    async def make(worker: Worker) -> str:
        await gate.wait()
        return worker.worker_id

    calls = [asyncio.create_task(chooser.place(Wanted(), make)) for _ in range(200)]
    await asyncio.sleep(0)
    assert [worker.occupied for worker in workers] == [50, 150]
    gate.set()
    names = await asyncio.gather(*calls)
    assert (names.count("small"), names.count("large")) == (50, 150)
    assert [worker.occupied for worker in workers] == [50, 150]


async def test_a_worker_that_refuses_costs_one_more_try() -> None:
    workers = [worker("a"), worker("b", active=5)]
    asked = []

    async def make(worker: Worker) -> str:
        asked.append(worker.worker_id)
        if worker.worker_id == "a":
            raise full()
        return worker.worker_id

    chooser = placement(*workers)
    assert await chooser.place(Wanted(), make) == "b"
    assert asked == ["a", "b"]
    assert await chooser.place(Wanted(), make) == "b", "its word is believed"
    assert asked == ["a", "b", "b"]
    workers[0].learn(Load(total=10, active=10))
    workers[1].learn(Load(total=10, active=10))
    workers[0].learn(Load(total=10, active=0))
    await chooser.place(Wanted(), make)
    assert asked[3:] == ["a", "b"], "until it says otherwise"


async def test_workers_that_seem_full_are_asked_when_there_are_no_others() -> None:
    assert await placement(worker("a", active=10)).place(Wanted(), name_of) == "a"


async def test_when_all_refuse_the_caller_learns_when_to_come_again() -> None:
    workers = [worker(str(number)) for number in range(20)]
    asked = []

    async def make(worker: Worker) -> str:
        asked.append(worker.worker_id)
        raise full(retry_after_s=7)

    with pytest.raises(Full, match=f"{TRIES} were asked") as refused:
        await placement(*workers).place(Wanted(), make)
    assert refused.value.retry_after_s == 7
    assert len(set(asked)) == len(asked) == TRIES
    assert all(worker.occupied == 0 for worker in workers)


@pytest.mark.parametrize("error", [Unavailable("gone"), RuntimeError("a bug"), TimeoutError()])
async def test_another_error_ends_the_search_because_it_may_have_been_made(
    error: Exception,
) -> None:
    workers = [worker("a"), worker("b")]
    asked = []

    async def make(worker: Worker) -> str:
        asked.append(worker.worker_id)
        raise error

    with pytest.raises(type(error)):
        await placement(*workers).place(Wanted(), make)
    assert len(asked) == 1
    assert all(worker.occupied == 0 for worker in workers)


async def test_a_caller_that_goes_away_gives_its_place_back() -> None:
    only = worker("a")

    async def make(worker: Worker) -> str:
        return await asyncio.get_running_loop().create_future()

    call = asyncio.create_task(placement(only).place(Wanted(), make))
    await asyncio.sleep(0)
    assert only.occupied == 1
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert only.occupied == 0


async def test_a_made_session_is_counted_until_the_worker_counts_it_itself() -> None:
    only = worker("a")
    await placement(only).place(Wanted(), name_of)
    assert only.occupied == 1
    only.learn(Load(total=10, active=1))
    assert only.occupied == 1


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (lambda one: setattr(one, "link", None), Wanted()),
        (lambda one: one.learn(Load(total=10, active=0, draining=True)), Wanted()),
        (lambda one: one.learn(Load(total=10, active=0, healthy=False)), Wanted()),
        (lambda one: None, Wanted(avoid=frozenset({Owner(worker_id="bad", incarnation=1)}))),
        (lambda one: None, Wanted(language="python3.12")),
        (lambda one: None, Wanted(tools=frozenset({"run.shell"}))),
        (lambda one: None, Wanted(store_id="theirs")),
        (lambda one: None, Wanted(worker_id="good")),
    ],
    ids=["unlinked", "drains", "ill", "avoided", "language", "tools", "store", "named"],
)
async def test_only_workers_that_fit_are_asked(
    spoil: Callable[[Worker], None], wanted: Wanted
) -> None:
    good = worker(
        "good",
        active=9,
        languages=frozenset({"python3.12"}),
        tools=frozenset({"run.shell", "echo"}),
        store_id="theirs",
    )
    bad = worker(
        "bad", languages=frozenset({"python3.11"}), tools=frozenset({"echo"}), store_id="ours"
    )
    spoil(bad)
    assert await placement(good, bad).place(wanted, name_of) == "good"


async def test_a_worker_that_did_not_tell_its_languages_and_tools_may_have_them() -> None:
    wanted = Wanted(language="python", tools=frozenset({"echo"}))
    assert await placement(worker("a")).place(wanted, name_of) == "a"


async def test_a_worker_that_did_not_tell_its_store_restores_nothing() -> None:
    with pytest.raises(Unavailable, match="checkpoint store"):
        await placement(worker("a")).place(Wanted(store_id=""), name_of)


async def test_a_named_worker_answers_for_itself() -> None:
    async def make(worker: Worker) -> str:
        raise full(retry_after_s=3)

    with pytest.raises(Full, match="no room here"):
        await placement(worker("a"), worker("b")).place(Wanted(worker_id="a"), make)
    with pytest.raises(NotFound, match="'c'"):
        await placement(worker("a")).place(Wanted(worker_id="c"), name_of)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(), "no worker that takes sessions is registered"),
        (Wanted(language="cobol"), "language 'cobol'"),
        (Wanted(tools=frozenset({"fly"})), r"tools \['fly'\]"),
    ],
)
async def test_without_any_worker_that_fits_the_need_is_named(wanted: Wanted, words: str) -> None:
    only = worker("a", languages=frozenset({"python"}), tools=frozenset({"echo"}))
    workers = [only] if wanted != Wanted() else []
    with pytest.raises(WorkerError, match=words) as refused:
        await placement(*workers).place(wanted, name_of)
    assert refused.value.reason == "NO_WORKER"
    assert refused.value.retry_after_s
