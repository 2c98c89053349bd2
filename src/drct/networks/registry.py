"""Names of networks, and the one function that builds them."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from drct.errors import OptionError, did_you_mean
from drct.networks import drct as drct_family
from drct.networks import hat as hat_family
from drct.networks import mamba_drct as mamba_family
from drct.networks import swinir as swinir_family
from drct.networks.base import SuperResolutionNetwork


@dataclasses.dataclass(frozen=True)
class Family:
    """A network class, its options, its named sizes, and published options that have no effect on it."""

    network: Callable[[Any], SuperResolutionNetwork]
    options: type
    configurations: Mapping[str, Mapping[str, Any]]
    dead_options: frozenset[str] = frozenset()
    # given all options and those that a caller named, takes out what of a named size would keep the latter from having an effect
    settle: Callable[[dict[str, Any], Mapping[str, Any]], None] = lambda chosen, named: None


FAMILIES: tuple[Family, ...] = (
    Family(
        drct_family.DRCT,
        drct_family.DRCTOptions,
        drct_family.CONFIGURATIONS,
        # stand in every published option file and were never read by the network
        dead_options=frozenset({"compress_ratio", "squeeze_factor", "conv_scale", "overlap_ratio", "patch_size"}),
        settle=drct_family.settle_heads,
    ),
    Family(swinir_family.SwinIR, swinir_family.SwinIROptions, swinir_family.CONFIGURATIONS, dead_options=frozenset({"patch_size"})),
    Family(hat_family.HAT, hat_family.HATOptions, hat_family.CONFIGURATIONS, dead_options=frozenset({"patch_size"})),
    Family(mamba_family.MambaDRCT, mamba_family.MambaDRCTOptions, mamba_family.CONFIGURATIONS),
)


def list_networks() -> list[str]:
    """Names that :func:`create_network` knows."""
    return [name for family in FAMILIES for name in family.configurations]


def find_family(name: str) -> Family:
    """The family that a network name belongs to; raises :class:`OptionError` for an unknown name."""
    if not isinstance(name, str):
        raise OptionError(f"network is {name!r:.80}, but must be one of these names: {', '.join(list_networks())}")
    for family in FAMILIES:
        if name in family.configurations:
            return family
    raise OptionError(f"network '{name}' is unknown{did_you_mean(name, list_networks())}; known: {', '.join(list_networks())}")


def options_without_effect(network: Mapping[str, Any]) -> list[str]:
    """Names among the options of an option file's ``network_g`` that its network never reads."""
    kind = str(network.get("type")).lower()
    dead = {option for family in FAMILIES if kind in family.configurations for option in family.dead_options}
    return [name for name in network if name in dead]


def create_network(name: str, *, scale: int | None = None, **options: Any) -> SuperResolutionNetwork:
    """Build a network with fresh weights, in training mode.

    Args:
        name: one of :func:`list_networks`, for example ``"drct"``, ``"drct_l"``, ``"drct_light"``.
        scale: magnification; the same as the published option name ``upscale``. Default 4.
        **options: published option names (``embed_dim``, ``depths``, ``num_heads``, ``window_size``, ``gc``, ...) that replace the
            named size's. ``compress_ratio`` and other options that never had an effect are accepted and ignored.

    Raises:
        OptionError: unknown name or option (the nearest valid one is named), or values that do not go together.
    """
    family = find_family(name)
    fields = {field.name: field for field in dataclasses.fields(family.options)}
    if scale is not None:
        if "upscale" in options and options["upscale"] != scale:
            raise OptionError(f"scale is {scale} but upscale is {options['upscale']}: give one of them")
        options["upscale"] = scale
    chosen = dict(family.configurations[name])
    for key, value in options.items():
        if key in family.dead_options:
            continue
        if key not in fields:
            raise OptionError(f"option '{key}' is unknown to network '{name}'{did_you_mean(key, fields)}")
        chosen[key] = _checked(name, key, value, str(fields[key].type))
    family.settle(chosen, options)
    return family.network(family.options(**chosen))


def _checked(name: str, key: str, value: Any, annotation: str) -> Any:
    """Bring an option value to its field's type, or say what was expected."""
    kind, _, optional = annotation.partition(" | ")
    if value is None and optional == "None":
        return None
    if kind.startswith("tuple"):
        if isinstance(value, (list, tuple)) and all(isinstance(v, numbers.Integral) and not isinstance(v, bool) for v in value):
            return tuple(map(int, value))
    elif kind == "float":
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            return float(value)
    elif kind == "int":
        # those of numpy, too; plain ones are kept, since options are written as JSON
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value).is_integer():
            return int(float(value))
    elif isinstance(value, {"bool": bool, "str": str}[kind]):
        return value
    expected = (
        "a list of whole numbers" if kind.startswith("tuple") else {"int": "a whole number", "float": "a number"}.get(kind, kind)
    )
    raise OptionError(f"option '{key}' of network '{name}' is {value!r}, but must be {expected}")
