"""Both READMEs name the same commands, and the commands exist with these options."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from drct.cli import cli

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, RUSSIAN = (ROOT / name for name in ("README.md", "README.ru.md"))


def code(path: Path) -> list[str]:
    """Lines of all code blocks, without their comments, which are translated."""
    blocks = re.findall(r"```\w*\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [line.split("#")[0].rstrip() for block in blocks for line in block.splitlines()]


def tables(path: Path) -> list[str]:
    return [re.sub(r"[^\d./|]", "", line) for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]


COMMANDS = [line for line in code(ENGLISH) if line.startswith("drct ")]


def test_the_translations_are_in_step() -> None:
    assert code(ENGLISH) == code(RUSSIAN)
    assert tables(ENGLISH) == tables(RUSSIAN)
    headings = [[line.count("#") for line in p.read_text().splitlines() if re.match("#+ ", line)] for p in (ENGLISH, RUSSIAN)]
    assert headings[0] == headings[1]


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line: str) -> None:
    """Parsing only: names of files in the README are made up."""
    verb, *arguments = shlex.split(line)[1:]
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None, f"there is no verb '{verb}'"
    command.make_context(verb, arguments)


@pytest.mark.parametrize("path", [ENGLISH, RUSSIAN], ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(("arguments", "said"), [([], "usage: "), (["missing.png", "out"], "error: missing.png: no such file")])
def test_the_example_tells_what_it_lacks(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in code(ENGLISH):
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line
