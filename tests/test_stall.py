"""The report of a run in which nothing moves: who waits for whom, from what each rank has said."""

from __future__ import annotations

import json

import pytest

from psgrad.errors import WireError
from psgrad.messages import encode_json
from psgrad.stall import Blocked, Scene, Told, View, cause, report
from psgrad.waiting import Wait

NAMES = {
    0: "coordinator (rank 0, a, pid 10)",
    1: "server 1 (rank 1, b, pid 11)",
    2: "worker 0 (rank 2, a, pid 12)",
    3: "worker 1 (rank 3, b, pid 13)",
    4: "worker 2 (rank 4, b, pid 14)",
}
WORKERS = {0: 2, 1: 3, 2: 4}
BEHIND = "clock 41 is 1 ahead of worker 2 at clock 40; the staleness bound is 0"


def blocked(worker, others, clock=41, chunks=(0, 1), reason=BEHIND):
    return Blocked(worker, clock, chunks, reason, others)


def scene(view=None, silent=None, **more):
    """Workers 0 and 1 have answered; ``silent`` ranks have not."""
    silent = {4: 61.25} if silent is None else silent
    told = {0: Told("takes messages", (), View() if view is None else view)}
    told |= {r: Told(f"rank {r} waits", ("its stack\n",)) for r in (1, 2, 3, 4) if r not in silent}
    fields = {"quiet_s": 60.4, "names": NAMES, "workers": WORKERS, "last": {4: "STEP of clock 40"}}
    return Scene(**{**fields, "told": told, "silent_s": silent, **more})


ROUND = View(
    (blocked(0, (2,)), blocked(1, (2,))), {0: (41, 41), 1: (41, 41), 2: (40, 40)}
)  # worker 2 has not pushed step 41
FOR_2 = "nothing has moved for 60 s: workers 0-1 wait for worker 2 (rank 4, b, pid 14): "


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (scene(ROUND), FOR_2 + "silent for 61.2 s, it was computing step 41"),
        (
            scene(ROUND, states={4: "stopped (T)"}),
            FOR_2 + "silent for 61.2 s, its process is stopped (T), it was computing step 41",
        ),
        (
            scene(View(ROUND.blocked, {**ROUND.pushed, 2: (40, 41)})),
            FOR_2 + "silent for 61.2 s, it was pushing step 41",
        ),
        (scene(ROUND, silent={}), FOR_2 + "rank 4 waits"),
        (
            scene(ROUND, last={}),
            FOR_2 + "does not answer, it was computing step 41",
        ),
        (
            scene(View(missing=(2,))),
            FOR_2 + "silent for 61.2 s, it has not registered its parameters, its last message was "
            "STEP of clock 40",
        ),
        (
            scene(View(), come=frozenset({0, 1}), missing=frozenset({2})),
            FOR_2 + "silent for 61.2 s, it pushes no more, its last message was STEP of clock 40",
        ),
        (
            scene(View(), silent={1: 70.0}),
            "nothing has moved for 60 s: server 1 (rank 1, b, pid 11): does not answer",
        ),
        (
            scene(View((blocked(0, (1,)), blocked(1, (0,)))), silent={}),
            "nothing has moved for 60 s: workers 0-1 wait for each other",
        ),
        (scene(View(), silent={}), "nothing has moved for 60 s: no rank is known to be waited for"),
        (
            scene(View()),
            "nothing has moved for 60 s: worker 2 (rank 4, b, pid 14): silent for 61.2 s, it "
            "pushes no more, its last message was STEP of clock 40",
        ),
    ],
    ids=["computes", "stopped", "pushes", "awake", "never heard", "not registered", "a rendezvous",
         "a server", "each other", "nothing known", "only silent"],
)  # fmt: skip
def test_the_first_line_names_who_is_waited_for(of, text):
    assert cause(of) == text
    assert report(of)[0] == text


def test_one_that_waits_itself_is_not_the_cause():
    """0 waits for 1, which waits for 2."""
    view = View((blocked(0, (1, 2)), blocked(1, (2,))), ROUND.pushed)
    assert cause(scene(view)).startswith(FOR_2)


def test_a_silent_one_that_waits_for_nobody_who_is_silent_is_the_cause():
    """A frozen worker with an unanswered step: the others wait for it, and it for one of them."""
    view = View((blocked(0, (2,)), blocked(2, (0,), clock=41)), {0: (40, 40), 2: (41, 41)})
    assert cause(scene(view)) == (
        "nothing has moved for 60 s: worker 0 waits for worker 2 (rank 4, b, pid 14): silent for "
        "61.2 s, it waits for the answer to step 41"
    )


def test_the_whole_report():
    assert report(scene(ROUND)) == [
        FOR_2 + "silent for 61.2 s, it was computing step 41",
        "  worker 2 (rank 4, b, pid 14): silent for 61.2 s, it was computing step 41",
        "  coordinator (rank 0, a, pid 10): takes messages",
        "  server 1 (rank 1, b, pid 11): rank 1 waits",
        "  worker 0 (rank 2, a, pid 12): rank 2 waits",
        f"    coordinator: step 41, chunks 0-1: {BEHIND}",
        "  worker 1 (rank 3, b, pid 13): rank 3 waits",
        f"    coordinator: step 41, chunks 0-1: {BEHIND}",
        "  stack of ranks 1-3, the last call last:",
        "    its stack",
    ]


def test_the_screen_gets_a_part_of_it():
    told = {r: Told("waits", tuple(f"{r} {i}\n" for i in range(9))) for r in (2, 3)}
    told[0] = Told("takes messages", ("a server's",), ROUND)
    lines = report(scene(ROUND, told=told), most=2, frames=3)
    assert lines[1:4] == [
        "  worker 2 (rank 4, b, pid 14): silent for 61.2 s, it was computing step 41",
        "  coordinator (rank 0, a, pid 10): takes messages",
        "  ... and 2 more ranks, in the coordinator's log",
    ]
    assert lines[4:8] == [
        "  stack of rank 2, the last call last:",
        *[f"    2 {i}" for i in (6, 7, 8)],
    ]


def test_a_thousand_ranks_are_a_line():
    names = {r: f"worker {r - 1} (rank {r})" for r in range(1, 1001)}
    workers = {r - 1: r for r in names}
    views = {0: Told("takes messages", (), View(missing=tuple(workers)))}
    said = cause(scene(told=views, names=names, workers=workers, silent=dict.fromkeys(names, 61.0)))
    assert said.endswith("; and 988 more")
    assert len(said) < 1500


# Views


def test_messages_that_wait_for_the_same_are_one():
    waits = [Wait(1, 41, chunk, BEHIND, (2,)) for chunk in (0, 2, 1)]
    waits.append(Wait(0, 41, 7, "another", ()))
    view = View.of(waits, {1: (40, 41)}, {3})
    assert view.blocked == (
        Blocked(0, 41, (7,), "another", ()),
        Blocked(1, 41, (0, 2, 1), BEHIND, (2,)),
    )


def test_what_a_rank_says_comes_back():
    told = Told("waits", ("a", "b"), ROUND)
    assert Told.from_payload(encode_json(told.record())) == told
    assert Told.from_payload(encode_json(Told("computes").record())) == Told("computes")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"doing": 7}, "field 'doing' of DOING must be str, got 7"),
        ({"stack": "here"}, "field 'stack' of DOING must be list"),
        ({"view": []}, "field 'view' of DOING must be dict or null, got list"),
        ({"view": {}}, "field 'view' of DOING is no view of a server"),
        ({"view": {"blocked": [[1]], "pushed": {}, "missing": []}}, "is no view of a server"),
        ({"view": {"blocked": [], "pushed": {"0": [1]}, "missing": []}}, "is no view of a server"),
        ({"view": {"blocked": [], "pushed": [], "missing": []}}, "is no view of a server"),
        ({"view": {"blocked": [], "pushed": {}, "missing": ["x"]}}, "is no view of a server"),
    ],
)
def test_another_shape_is_refused(change, text):
    with pytest.raises(WireError, match=text):
        Told.from_payload(json.dumps({**Told("x").record(), **change}).encode())
