"""``psgrad.run`` and the worker's whole interface, on real ranks."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "ranks" / "api.py"
LOSSY = ("topk:0.05+int8", "sign", "int4:rounding=stochastic")

# Of those that fail: where each MPI has its own way to end a job.
ENDS = ("raises", "exits", "early", "wrong_shape", "two_rates", "different")

# How many ranks -> what they do one after the other, in one job.
WORKS = {
    3: ("clipped", "misuse"),
    4: (
        "views", "weights", "uneven", "no_parameters", "caught", "late_start", "never_torn",
        "leaving_while_others_wait", "rendezvous", "segments", "not_finite", "communicator",
        *(f"nothing_lost/{codec}/{mode}" for codec in LOSSY for mode in ("sync", "async")),
    ),
    5: (
        "push_and_pull", "ef21", "pulled_in_8_bits", "pulled_differences", "shared", "in_parts",
        "in_parts_by_message", "set_lr", "bounded",
    ),
    6: ("outvoted",),
}  # fmt: skip

# Case -> (exit status, what the last line of psgrad says).
FAILS = {
    "raises": (1, "rank 2 (worker, {host}): ValueError: no such luck"),
    "exits": (5, "rank 2 (worker, {host}): SystemExit: 5"),
    "early": (1, "rank 1 ({host}): ValueError: before run()"),
    "wrong_dtype": (
        2,
        "rank 1 (worker, {host}): LayoutError: worker 1: parameter 'b' has dtype float64, psgrad "
        "trains float32; pass b.astype(numpy.float32)",
    ),
    "wrong_shape": (
        2,
        "rank 1 (worker, {host}): LayoutError: parameters differ between workers: worker 2 has "
        "parameter 'b' with shape (8,), expected (7,), as on worker 0",
    ),
    "wrong_name": (
        2,
        "rank 1 (worker, {host}): LayoutError: parameters differ between workers: worker 2 has "
        "parameter 'v' where 'w' is expected, as on worker 0",
    ),
    "two_rates": (
        2,
        "rank 0 (coordinator, {host}): ConfigError: workers set different learning rates at "
        "clock 1: worker 0 0.1, worker 1 0.2, worker 2 0.3; in sync mode all must set the same",
    ),
    "two_means": (
        2,
        "rank 1 (worker, {host}): ConfigError: worker 1 brought ['a'] to mean(), worker 0 "
        "brought ['b']; all must bring the same names",
    ),
    "two_means_without_0": (
        2,
        "rank 2 (worker, {host}): ConfigError: worker 2 brought ['b'] to mean(), worker 1 "
        "brought ['a']; all must bring the same names",
    ),
    "wrong_segments": (
        2,
        "rank 1 (worker, {host}): LayoutError: worker 0: unknown parameter in segment match 'z*'. "
        "Known: b, w",
    ),
    "uneven_epochs": (
        2,
        "rank 0 (coordinator, {host}): ConfigError: worker 1 waits for the next step of worker 0, "
        "which waits at mean() or barrier() for worker 1; call worker.leave() where a worker's "
        "data ends, or give all workers the same number of steps",
    ),
    "ef21_uneven": (
        2,
        "rank 0 (coordinator, {host}): ConfigError: feedback ef21 needs all 3 workers in every "
        "round, round 5 has 2: a worker has left; give all workers the same number of steps, or "
        "use feedback ef",
    ),
    "outvoted_uneven": (
        2,
        "rank 0 (coordinator, {host}): ConfigError: aggregate median needs 3 gradients in every "
        "round, round 5 has 2: a worker has left, or its step was empty; give all workers the same "
        "number of steps, start more, or use aggregate mean",
    ),
    "never_finite": (
        1,
        "rank 2 (worker, {host}): NonFiniteError: the gradient of 'b' was NaN or infinite for 10 "
        "steps in a row; lower the learning rate or clip gradients",
    ),
    "different": (2, "staleness differs between ranks: 0 on ranks 0, 1; 1 on ranks 2, 3"),
    "servers": (
        2,
        "servers must be from 1 to 3 with 4 ranks, got 4; use --servers 1 or start more ranks",
    ),
}


@pytest.mark.parametrize("ranks", WORKS)
def test_works(mpi, ranks):
    status, stdout, stderr = mpi.run(ranks, [PROGRAM, ranks, *WORKS[ranks]], timeout=120)
    said = Counter(stdout.split())
    late = [case for case in WORKS[ranks] if said[case] < ranks]
    assert status == 0, f"in {late[:1]}: {stderr}"
    assert said == Counter(dict.fromkeys(WORKS[ranks], ranks))
    assert stderr == ""


@pytest.mark.parametrize("case", ENDS)
def test_a_rank_ends_the_job(mpi, case):
    check_it_fails(mpi, case)


@pytest.mark.parametrize("case", [case for case in FAILS if case not in ENDS])
def test_fails(any_mpi, case):
    check_it_fails(any_mpi, case)


def check_it_fails(mpi, case):
    expected_status, text = FAILS[case]
    status, _, stderr = mpi.run(4, [PROGRAM, 4, case], timeout=20)
    assert status == expected_status, stderr
    lines = [line for line in stderr.splitlines() if line.startswith("psgrad: error: ")]
    assert lines == ["psgrad: error: " + text.format(host=socket.gethostname())]


def test_one_rank_says_how_to_start(mpi):
    status, _, stderr = mpi.run(1, [PROGRAM, 1, "views"])
    assert status == 2
    assert "psgrad: error: psgrad needs at least 2 ranks" in stderr
    assert "psgrad run --np 4" in stderr
