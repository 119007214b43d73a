"""No step: ``numpy.copyto`` of one array of the size to another, by one core."""

from __future__ import annotations

import time

import numpy as np

from peers.contract import Trace, gradient, parse, report
from psgrad.bench.machine import describe


def main() -> None:
    """Copies, and reports the times as if a step were a copy."""
    found = parse()
    case = found.case
    source, target = gradient(0, case.n), np.full(case.n, 0, np.float32)
    ends: list[float] = []
    for i in range(case.warm_up + case.steps + 1):
        if i >= case.warm_up:
            ends.append(time.perf_counter())
        np.copyto(target, source)
    facts = describe(mpi=False)
    versions = {name: str(facts[name]) for name in ("cpu", "cores", "python", "numpy")}
    report(found.system, case, [Trace(ends, None)], versions)


if __name__ == "__main__":
    main()
