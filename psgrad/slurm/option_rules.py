"""What goes wrong in the ``#SBATCH`` lines of a script, by themselves and with what it starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from psgrad.slurm.finding import Finding, Findings, Site
from psgrad.slurm.script import Script
from psgrad.slurm.words import option, seconds

INTERVAL: Final = re.compile(r"(\d+(?:\.\d+)?)s")


def is_taken_by_sbatch(script: Script, site: Site) -> Findings:
    """Lines that Slurm refuses, or passes over without a word."""
    if not script.text.startswith("#!"):
        yield Finding(1, "sbatch refuses a script without an interpreter", "begin with #!/bin/bash")
    if "\r\n" in script.text:
        line = script.text[: script.text.index("\r\n")].count("\n") + 1
        yield Finding(line, "sbatch refuses lines that end as on Windows", "run dos2unix on it")
    for line in script.late:
        yield Finding(
            line,
            "sbatch reads no #SBATCH behind the first command",
            "move it to the top, among the others",
        )
    for number, text in enumerate(script.text.splitlines(), 1):
        if re.match(r"\s*#\s+SBATCH\s+-|\s+#SBATCH\s+-|#(?!SBATCH)(?i:sbatch)\s+-", text):
            yield Finding(
                number,
                "this is a comment for Slurm, not an option",
                "write #SBATCH in capitals, at the beginning of the line, without spaces in it",
            )


def has_no_variables(script: Script, site: Site) -> Findings:
    """Slurm's own patterns (%j) are the only ones in ``#SBATCH`` lines."""
    for given in script.options:
        if "$" in given.value or given.value.startswith("~"):
            yield Finding(
                given.line,
                f"--{given.name}={given.value} is taken as it stands: no shell reads #SBATCH lines",
                "write the value out (%j is the job, %x its name, %u the user)",
            )


def can_write_its_output(script: Script, site: Site) -> Findings:
    """A job whose output cannot be opened fails at once, and says nothing."""
    for name in ("output", "error"):
        given = script.find(name)
        if given is None or "$" in given.value:
            continue
        parent = Path(given.value).parent
        if "%" not in str(parent) and not (site.folder / parent).is_dir():
            yield Finding(
                given.line,
                f"there is no folder {parent}, and Slurm makes none: the job would fail without "
                "a message",
                f"mkdir -p {parent} before sbatch",
            )
        if script.find("array") and not re.search(r"%(a|j|J)", given.value):
            yield Finding(
                given.line,
                f"all jobs of the array write into the same {given.value}",
                f"put %A-%a into the name: --{name}=%x-%A-%a.out",
            )


def has_time_for_a_checkpoint(script: Script, site: Site) -> Findings:
    """The time limit, the interval of checkpoints, and the warning before the end."""
    time = script.find("time")
    limit_s = seconds(time.value) if time else None
    if time is None or limit_s is None:
        return
    for start in script.starts:
        every = option(start.train, "--checkpoint-every") or ""
        interval = INTERVAL.fullmatch(every)
        if interval and float(interval[1]) >= limit_s:
            yield Finding(
                start.command.line,
                f"--checkpoint-every {every} is not shorter than --time={time.value}: the job ends "
                "before its first checkpoint",
                "write them more often, or raise --time",
            )
    lead_s = _lead(script)
    if lead_s is not None and lead_s >= limit_s:
        signal = script.find("signal")
        yield Finding(
            signal.line if signal else time.line,
            f"the signal comes {lead_s} s before the end, and the job has --time={time.value}: it "
            "would be stopped as it starts",
            "shorten the one, or raise the other",
        )


def comes_back_whole(script: Script, site: Site) -> Findings:
    """A job that is requeued goes on where it was, and keeps its log."""
    requeue, signal, mode = (script.find(n) for n in ("requeue", "signal", "open-mode"))
    if signal and not requeue:
        yield Finding(
            signal.line,
            "the job is told that its time is over, but may not go back into the queue",
            "add #SBATCH --requeue",
        )
    if requeue and (mode is None or mode.value != "append"):
        yield Finding(
            requeue.line,
            "after a requeue the output begins anew, and what was in it is gone",
            "add #SBATCH --open-mode=append",
        )
    for start in script.starts if requeue else []:
        train, line = start.train, start.command.line
        if option(train, "--resume") != "auto":
            yield Finding(
                line,
                "a requeued job would not go on from its checkpoints",
                "add --resume auto --checkpoint-every 600s",
            )
        if not option(train, "--run-dir", "--checkpoint-dir"):
            yield Finding(
                line,
                "without --run-dir each start has a new run folder, with no checkpoints in it",
                'add --run-dir "runs/$SLURM_JOB_ID": a requeued job keeps its number',
            )


def hears_its_signal(script: Script, site: Site) -> Findings:
    """A signal to the batch shell needs a trap, and a shell that is free to run it."""
    signal = script.find("signal")
    if signal is None:
        return
    to_shell = "B" in signal.value.partition(":")[0].upper() and ":" in signal.value
    name = re.sub(r"^(.*:)?(SIG)?|@.*$", "", signal.value)
    traps = [c for c in script.commands if c.program == "trap" and name in c.words]
    if to_shell and not traps:
        yield Finding(
            signal.line,
            f"SIG{name} goes to the batch shell, which has no trap for it and dies",
            f"add a trap that passes it on: trap 'kill -USR1 \"$job\"' {name}",
        )
    for start in script.starts:
        if traps and to_shell and not start.command.background:
            yield Finding(
                start.command.line,
                "bash runs a trap only when no program is in front of it: the signal would wait "
                "until this one has ended",
                'put an & behind it, and then: wait "$job"',
            )
        if not to_shell and start.program in ("mpirun", "mpiexec", ""):
            yield Finding(
                signal.line,
                "without B: the signal goes to steps of srun, and not to a program that the batch "
                "shell has started",
                f"write --signal=B:{signal.value}, with a trap that passes it on",
            )


def _lead(script: Script) -> int | None:
    """How many seconds before the end of the job its signal comes."""
    signal = script.find("signal")
    if signal is None:
        return None
    text = signal.value.partition("@")[2] or "60"
    return int(text) if text.isdecimal() else None


OPTION_RULES: Final = (
    is_taken_by_sbatch,
    has_no_variables,
    can_write_its_output,
    has_time_for_a_checkpoint,
    comes_back_whole,
    hears_its_signal,
)
