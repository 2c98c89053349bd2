"""What verbs print: results on standard output; progress, notes and errors on standard error.

On a terminal a progress bar stays below the lines; in a pipe there are only the lines; with ``--json`` standard output holds one
JSON document and nothing else.
"""

from __future__ import annotations

import io
import json
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.progress import Progress


def accept_all_letters() -> None:
    """Let standard output and error escape letters that their encoding lacks, so that no file name can end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def error(message: str) -> None:
    """One line about something that failed."""
    click.echo(f"drct: error: {printable(message)}", err=True)


def printable(text: str) -> str:
    """Text that stays one line and can be shown: file names may hold line feeds, escape sequences and bytes that are no letters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody watches; a stream that was closed is None."""
    return stream is not None and stream.isatty()


class Console:
    """Lines, and a progress bar while it is used as a context.

    Args:
        quiet: no results, notes or progress: only errors and :meth:`document`.
        as_json: the same, for verbs that print a JSON document.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet or as_json
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Console:
        if not self.quiet and is_terminal(sys.stderr):
            from rich.console import Console as Rich
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Rich(stderr=True),
                redirect_stdout=False,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def progress(self, name: str, done: float, total: float, text: str | None = None) -> None:
        """Set the bar ``name`` (made when it is new) to ``done`` of ``total``."""
        if self._progress is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(text or name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total, description=text or name)

    def say(self, line: str) -> None:
        """A result."""
        if not self.quiet:
            self._line(line, err=False)

    def note(self, line: str) -> None:
        """Something worth knowing that is no result and no error."""
        if not self.quiet:
            self._line(f"drct: note: {line}", err=True)

    def error(self, line: str) -> None:
        """Something that failed."""
        self._line(f"drct: error: {line}", err=True)

    def document(self, value: Any, indent: int | None = 2) -> None:
        """The JSON document of a verb; on one line with ``indent`` None."""
        click.echo(json.dumps(value, indent=indent))

    def _line(self, line: str, err: bool) -> None:
        line = printable(line)
        if self._progress is not None and (err or is_terminal(sys.stdout)):
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line, err=err)
