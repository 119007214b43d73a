"""The virtual environments that the systems run in, made on demand. Standard library only.

What is there already stays; what could not be installed is tried again the next time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from peers.systems import MPICH, OPENMPI, PSGRAD

TORCH: Final = "torch==2.13.0+cpu"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"
INSTALLED: Final = "peers.json"  # in an environment: what was installed, and from what
PATIENCE_S: Final = 1800.0

Install = Callable[[Path, tuple[str, ...]], str | None]


@dataclass(frozen=True)
class Environment:
    """One environment: its name, and what pip is told for each package, in order."""

    name: str
    packages: Mapping[str, tuple[str, ...]]

    def only(self, names: Collection[str]) -> Environment:
        """The same with no other packages than ``names``."""
        kept = {name: told for name, told in self.packages.items() if name in names}
        return Environment(self.name, MappingProxyType(kept))


def wanted(root: Path, torch: str = TORCH) -> tuple[Environment, ...]:
    """The environments for the checkout ``root``; ``torch`` is what pip installs as PyTorch."""
    return (
        Environment(
            OPENMPI,
            MappingProxyType(
                {
                    PSGRAD: ("-e", f"{root}[openmpi,compiled,plot]"),
                    "torch": (torch, "--extra-index-url", TORCH_INDEX),
                    "ray": ("ray",),
                }
            ),
        ),
        Environment(MPICH, MappingProxyType({PSGRAD: ("-e", f"{root}[mpich,compiled]")})),
    )


def python_of(folder: Path, name: str) -> Path:
    """The Python of the environment ``name``."""
    return folder / name / "bin" / "python"


def provide(
    folder: Path,
    environment: Environment,
    state: str,
    install: Install,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Makes ``environment`` under ``folder``; returns why a package is missing, for each that is.

    ``state`` is what the checkout says that it needs: where it has changed, everything is installed
    again. ``install`` runs pip in an environment and returns why it failed, or None.
    """
    place = folder / environment.name
    notes = place / INSTALLED
    known = json.loads(notes.read_text()) if notes.exists() else {}
    missing: dict[str, str] = {}
    for package, arguments in environment.packages.items():
        if PSGRAD in missing:  # there is nothing to run the others with
            missing[package] = f"psgrad could not be installed: {missing[PSGRAD]}"
            continue
        if known.get(package) == [state, *arguments]:
            continue
        say(f"{environment.name}: installing {package} ({' '.join(arguments)})")
        reason = install(place, arguments)
        if reason is not None:
            missing[package] = reason
            continue
        known[package] = [state, *arguments]
        place.mkdir(parents=True, exist_ok=True)
        notes.write_text(json.dumps(known, indent=1) + "\n")
    return missing


def install(place: Path, arguments: tuple[str, ...]) -> str | None:
    """Makes the environment at ``place`` if there is none, and has its pip install."""
    python = place / "bin" / "python"
    steps = [[str(python), "-m", "pip", "install", "--quiet", "--no-input",
              "--disable-pip-version-check", "--retries=1", *arguments]]  # fmt: skip
    if not python.exists():
        steps.insert(0, [sys.executable, "-m", "venv", str(place)])
    for step in steps:
        try:
            done = subprocess.run(
                step, capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            return f"not installed after {PATIENCE_S:g} s"
        if done.returncode:
            return why(done.stdout + done.stderr)
    return None


def why(text: str) -> str:
    """The last error in what pip has written, or its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.partition(":")[2].strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip failed and wrote nothing"])[-1]
