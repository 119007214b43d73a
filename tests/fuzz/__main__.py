"""The command line of ``bin/fuzz``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.engine import Report, Target, run  # noqa: E402
from fuzz.mutate import BLOCK  # noqa: E402
from fuzz.targets import TARGETS  # noqa: E402
from psgrad.arguments import count  # noqa: E402

TURN_S = 10.0  # of a target, before the next one has its turn


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="bin/fuzz",
        description="Feeds inputs that nobody would send to all that reads bytes from outside.",
    )
    found.add_argument("--inputs", type=count, default="1M", help="in all, by the targets' shares")
    found.add_argument("--seed", type=int, default=1, help="what the inputs follow from (1)")
    found.add_argument("--first", type=int, default=0, help="the first input of each target (0)")
    found.add_argument("--seconds", type=float, default=float("inf"), help="at most so long")
    found.add_argument("--target", action="append", choices=list(TARGETS), help="only these")
    found.add_argument("--wire", action="store_true", help="only what comes from other ranks")
    found.add_argument("--jobs", type=int, choices=(1, 2), default=1, help="processes (1)")
    found.add_argument("--json", action="store_true", help="a record of each target")
    return found


def plan(targets: list[Target], inputs: int) -> dict[str, int]:
    """How many inputs each target gets: in all, not fewer than ``inputs``."""
    total = sum(target.share for target in targets)
    return {target.name: -(-inputs * target.share // total) for target in targets}


def alone(targets: list[Target], arguments: argparse.Namespace) -> list[Report]:
    """All targets in this process, in turns."""
    until = time.monotonic() + arguments.seconds
    left = plan(targets, arguments.inputs)
    reports = {name: Report(name) for name in left}
    while any(left.values()) and time.monotonic() < until:
        for target in targets:
            report = reports[target.name]
            first = arguments.first + report.inputs
            turn = min(until, time.monotonic() + TURN_S)
            one = run(target, arguments.seed, first, left[target.name], turn)
            add(report, one)
            left[target.name] = 0 if one.problem else left[target.name] - one.inputs
    return list(reports.values())


def add(report: Report, more: Report) -> None:
    report.inputs += more.inputs
    report.accepted += more.accepted
    report.seconds += more.seconds
    report.peak = max(report.peak, more.peak)
    report.problem = report.problem or more.problem
    for name, times in more.errors.items():
        report.errors[name] = report.errors.get(name, 0) + times


def together(targets: list[Target], arguments: argparse.Namespace) -> list[Report]:
    """Each process has a part of the inputs of every target, from a whole block on."""
    jobs = []
    for job in range(arguments.jobs):
        inputs = arguments.inputs // arguments.jobs
        apart = -(-arguments.inputs // BLOCK) * BLOCK  # more than any target gets
        command = [sys.executable, str(Path(__file__).parent), "--json", "--inputs", str(inputs)]
        command += ["--first", str(arguments.first + job * apart), "--seed", str(arguments.seed)]
        command += ["--seconds", str(arguments.seconds)]
        command += [word for target in targets for word in ("--target", target.name)]
        jobs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    reports = {target.name: Report(target.name) for target in targets}
    for job in jobs:
        out, _ = job.communicate()
        for line in out.splitlines():
            more = Report(**json.loads(line))
            add(reports[more.target], more)
        if job.returncode not in (0, 1):
            raise SystemExit(f"bin/fuzz: a process ended with status {job.returncode}")
    return list(reports.values())


def table(reports: list[Report], seconds: float) -> str:
    lines = [f"{'target':20}{'inputs':>11}{'accepted':>10}{'inputs/s':>10}{'peak KiB':>10}"]
    for r in [*reports, totals(reports)]:
        rate = r.inputs / r.seconds if r.seconds else 0.0
        share = 100 * r.accepted / r.inputs if r.inputs else 0.0
        lines.append(f"{r.target:20}{r.inputs:11}{share:9.1f}%{rate:10.0f}{r.peak >> 10:10}")
    return "\n".join([*lines, f"{seconds:.0f} s"])


def totals(reports: list[Report]) -> Report:
    total = Report("all")
    for report in reports:
        add(total, report)
    return total


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if not arguments.first >= 0 or not arguments.seed >= 0:
        parser().error("--first and --seed must be at least 0")
    names = arguments.target or list(TARGETS)
    targets = [TARGETS[name] for name in dict.fromkeys(names)]
    targets = [target for target in targets if target.wire or not arguments.wire]
    start = time.monotonic()
    reports = (alone if arguments.jobs == 1 else together)(targets, arguments)
    if arguments.json:
        for report in reports:
            print(json.dumps(asdict(report)))
    else:
        print(table(reports, time.monotonic() - start))
    problems = [report.problem for report in reports if report.problem]
    if not arguments.json:
        sys.stderr.write("".join(f"bin/fuzz: {problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
