"""``psgrad slurm check``: a script through all rules."""

from __future__ import annotations

from psgrad.slurm.finding import Finding, Site
from psgrad.slurm.option_rules import OPTION_RULES
from psgrad.slurm.script import parse
from psgrad.slurm.start_rules import START_RULES


def check(text: str, site: Site) -> list[Finding]:
    """The mistakes in a script, by line."""
    script = parse(text)
    found = {finding for rule in (*OPTION_RULES, *START_RULES) for finding in rule(script, site)}
    return sorted(found, key=lambda finding: (finding.line, finding.what))
