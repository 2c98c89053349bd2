"""Option files, and options that cannot be, told in one line; for every room that checks its options by pydantic."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, get_args, get_origin

from drct.errors import MissingDependencyError, OptionError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


MANY = 5  # places where one key may stand, which are not told any more


def several(values: Any) -> Any:
    """A single name or path is as good as a list of one."""
    return (values,) if isinstance(values, (str, os.PathLike)) else values


def first_problem(
    error: ValidationError,
    known: Collection[str] | Mapping[str, Sequence[str]],
    *,
    noun: str = "option",
    depth: int | None = None,
    branches: Collection[str] = (),
    expected: Mapping[str, str] | None = None,
) -> str:
    """The first problem of a validation error in one line.

    Args:
        error: as pydantic raised it.
        known: the valid keys of all groups, of which the one nearest to an unknown key is named; and where they stand, as
            :func:`key_places` finds it, where options are nested.
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
            places = known[keys[-1]] if isinstance(known, Mapping) else []
            meant = f" (did you mean {' or '.join(places)}?)" if 0 < len(places) < MANY else ""
            return f"{noun} '{where}' stands in the wrong place{meant}"
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


def key_places(options: type[BaseModel], named: Mapping[type[BaseModel], str] | None = None) -> dict[str, list[str]]:
    """Where each key of nested options may stand, for example ``lr``: ``["train.optim_g.lr", "train.optim_d.lr"]``.

    ``named``: how the options in a mapping, whose keys may have any name, are called there; NAME where it does not say.
    """
    places: dict[str, list[str]] = {}
    for place in _keys(options, named or {}):
        places.setdefault(place.rpartition(".")[2], []).append(place)
    return places


def _keys(options: type[BaseModel], named: Mapping[type[BaseModel], str]) -> Iterator[str]:
    for name, field in options.model_fields.items():
        yield name
        for step, group in _groups(field.annotation):
            inside = "" if step is None else f"{named.get(group, step)}."
            yield from (f"{name}.{inside}{below}" for below in _keys(group, named))


def _groups(annotation: Any) -> Iterator[tuple[str | None, type[BaseModel]]]:
    """Options that a type of values holds, itself, in a union, or in a mapping, whose key is then NAME."""
    if hasattr(annotation, "model_fields"):
        yield None, annotation
    for part in get_args(annotation):
        yield from (("NAME" if get_origin(annotation) is dict else step, group) for step, group in _groups(part))


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
