"""Names of files and folders on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class GivenPath(click.Path):
    """A file or folder as a :class:`pathlib.Path`. An empty name, as ``"$UNSET"`` gives it, would mean the current folder."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**{"path_type": Path, **how})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)
