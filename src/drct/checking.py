"""Option files, and options that cannot be, told in one line; for every room that checks its options by pydantic."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from drct.errors import MissingDependencyError, OptionError, did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError


def several(values: Any) -> Any:
    """A single name or path is as good as a list of one."""
    return (values,) if isinstance(values, (str, os.PathLike)) else values


def first_problem(
    error: ValidationError,
    known: Collection[str],
    *,
    noun: str = "option",
    depth: int | None = None,
    branches: Collection[str] = (),
    expected: Mapping[str, str] | None = None,
) -> str:
    """The first problem of a validation error in one line.

    Args:
        error: as pydantic raised it.
        known: the valid keys of all groups, of which the one nearest to an unknown key is named.
        noun: what a key is called.
        depth: how far options are nested; what pydantic names below that are branches of unions and parts of a value.
        branches: steps of a location that are branches of a union and no keys.
        expected: what must stand at a location, where that is said more simply than pydantic does.
    """
    first = error.errors()[0]
    keys = [str(step) for step in first["loc"][:depth] if step not in branches]
    where = ".".join(keys)
    if first["type"] == "extra_forbidden":
        if keys[-1] in known:
            return f"{noun} '{where}' stands in the wrong place: {keys[-1]} belongs elsewhere in the file"
        return f"{noun} '{where}' is unknown{did_you_mean(keys[-1], known)}"
    if first["type"] == "missing":
        return f"{noun} '{where}' is missing"
    if first["input"] is None and first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{where} is empty: leave it out, or fill it"
    message = first["msg"].removeprefix("Value error, ")
    if not where:
        return message
    if isinstance(first["input"], dict):  # a group of options, too long to repeat
        return f"{where}: {message}"
    return f"{where} is {first['input']!r}: {(expected or {}).get(where, message)}"


def without_keys(data: Mapping[str, Any], dead: Collection[str], inside: str = "") -> tuple[dict[str, Any], list[str]]:
    """An option file without keys that have no effect, wherever they stand but among the options of the network.

    Returns:
        What is left, and where the keys stood, for example ``datasets.train.io_backend``.
    """
    kept: dict[str, Any] = {}
    found: list[str] = []
    for key, value in data.items():
        if key in dead:
            found.append(f"{inside}{key}")
        elif isinstance(value, dict) and key != "network_g":
            kept[key], more = without_keys(value, dead, f"{inside}{key}.")
            found += more
        else:
            kept[key] = value
    return kept, found


def name_template(value: str) -> str:
    """Check a template for names of LR images, with one {} for the name of the GT image; to be used by pydantic.

    Raises:
        ValueError: it holds none, several, or other braces.
    """
    try:
        fits = value.count("{}") == 1 and "name" in value.format("name")
    except (IndexError, KeyError, ValueError):
        fits = False
    if not fits:
        raise ValueError("must hold {} once, where the name of the GT image stands without its suffix, for example {}x4")
    return value


def folder_name(value: str) -> str:
    """Check a name that stands for a folder in another one; to be used by pydantic.

    Raises:
        ValueError: it would lead out of that folder.
    """
    parts = PurePath(value).parts
    if not value.strip() or not parts or ".." in parts or PurePath(value).is_absolute():
        raise ValueError("must be the name of a folder, for example drct_x4")
    return value


def read_option_file(path: Path) -> Any:
    """What an option file (YAML, UTF-8) holds.

    Raises:
        OptionError: it cannot be read, is no YAML, or has a key twice in one place, of which one would be ignored in silence.
        MissingDependencyError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError("option files need PyYAML: pip install 'drct[train]'") from error

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            # here, before merges bring in the keys of other mappings
            node: yaml.MappingNode = super().compose_mapping_node(anchor)
            lines: dict[str, int] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    line = key.start_mark.line + 1
                    if key.value in lines:
                        raise OptionError(f"{path}: '{key.value}' stands in line {line} and in line {lines[key.value]}: remove one")
                    lines[key.value] = line
            return node

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates that do not exist are ValueErrors
        raise OptionError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
