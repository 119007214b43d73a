"""The recipes in slurm/containers, as far as a machine without their engines can tell.

Nothing is built here. Each instruction must be one, what they copy must be there, their shell must
be shell, and what they install an extra of psgrad's. With an engine, its own check of the recipe
runs as well.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess

import pytest
from installed_mpi import ROOT

FOLDER = ROOT / "slurm" / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
DEFINITION = (FOLDER / "psgrad.def").read_text()
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
SECTIONS = {
    "arguments", "environment", "files", "help", "labels", "post", "runscript", "setup",
    "startscript", "test",
}  # fmt: skip
SHELL = ("post", "environment", "runscript", "test")
# Without these pip makes no psgrad: it reads them, or what they name.
NEEDED = {"LICENSE", "README.rst", "psgrad", "pyproject.toml", "setup.cfg"}


def extras():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return set(setup["options.extras_require"])


def instructions():
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line]


def sections():
    text = re.sub(r"^\s*#.*\n", "", DEFINITION, flags=re.MULTILINE)
    head, *parts = re.split(r"^%(\w+)[^\n]*\n", text, flags=re.MULTILINE)
    return head, dict(zip(parts[::2], parts[1::2], strict=True))


def test_dockerfile():
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[0] == ["FROM", "python:3.11-slim-bookworm"]
    copied = [word for name, rest in found if name == "COPY" for word in rest.split()[:-1]]
    assert set(copied) == NEEDED
    assert all((ROOT / word).exists() for word in copied)
    assert ["ENTRYPOINT", '["psgrad"]'] in found
    (default,) = [rest for name, rest in found if name == "ARG"]
    assert set(default.removeprefix("EXTRAS=").split(",")) <= extras()
    for _, command in (line for line in found if line[0] == "RUN"):
        assert subprocess.run(["sh", "-n"], input=command, text=True, check=False).returncode == 0


def test_what_is_sent_to_the_engine():
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == NEEDED


def test_definition():
    head, found = sections()
    assert dict(line.split(": ") for line in head.split("\n") if line) == {
        "Bootstrap": "docker", "From": "python:3.11-slim-bookworm",
    }  # fmt: skip
    assert found.keys() <= SECTIONS
    copied = [line.split()[0] for line in found["files"].splitlines() if line]
    assert set(copied) == NEEDED
    (default,) = [line.strip() for line in found["arguments"].splitlines() if line]
    assert set(default.removeprefix("EXTRAS=").split(",")) <= extras()
    assert "{{ EXTRAS }}" in found["post"]
    for name in SHELL:
        done = subprocess.run(["sh", "-n"], input=found[name], text=True, check=False)
        assert done.returncode == 0, name


@pytest.mark.parametrize("text", [DOCKERFILE, DEFINITION], ids=["Dockerfile", "psgrad.def"])
def test_extras_that_the_comments_name(text):
    named = set(re.findall(r"EXTRAS=([\w,]+)", text))
    assert {extra for words in named for extra in words.split(",")} <= extras()


def test_the_engine_likes_it():
    engine = shutil.which("docker")
    if engine is None:
        pytest.skip("no docker here: the Dockerfile is read by these tests only")
    version = subprocess.run([engine, "buildx", "version"], capture_output=True, check=False)
    if version.returncode:
        pytest.skip("this docker has no buildx, which has the check")
    checked = subprocess.run(
        [engine, "build", "--check", "--file", FOLDER / "Dockerfile", ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    if "Cannot connect" in checked.stderr:
        pytest.skip("docker has no daemon here")
    assert checked.returncode == 0, checked.stdout + checked.stderr
