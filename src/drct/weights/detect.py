"""Architecture and options of a network from the names and shapes of its tensors.

One detector per family stands in ``DETECTORS``. It looks at the tensors and returns the options it can infer, or None if
they belong to another family. Options that leave no trace in a state dict (``img_range``, drop rates, the values of
``depths``) keep their defaults.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from drct.errors import CheckpointError, OptionError
from drct.networks.drct import BLOCKS, DRCTOptions
from drct.networks.registry import find_family

Tensors = Mapping[str, Tensor]
Options = dict[str, Any]

# Options that change no value of a trained network, or that every named size comes with in several values.
IRRELEVANT = frozenset({"upscale", "in_chans", "img_size", "drop_rate", "attn_drop_rate", "drop_path_rate", "use_checkpoint"})


def detect(tensors: Tensors) -> tuple[str, Options]:
    """Find out which network the tensors belong to.

    Args:
        tensors: weights under published names; recomputable buffers may be among them.

    Returns:
        A name for :func:`drct.create_network` and all options that could be inferred. The name is that of a named size
        (``"drct_l"``) when the options equal it, else that of the family (``"drct"``).

    Raises:
        CheckpointError: the tensors belong to no known architecture, or to a variant that cannot be expressed.
    """
    for architecture, detector in DETECTORS.items():
        try:
            options = detector(tensors)
        except KeyError as error:
            raise CheckpointError(f"the weights look like {architecture} but lack {error.args[0]}") from error
        except (OptionError, ValueError, IndexError, ZeroDivisionError) as error:
            raise CheckpointError(f"the weights look like {architecture} but do not fit together ({error})") from error
        if options is not None:
            return named_size(architecture, options), options
    shown = ", ".join(list(tensors)[:3])
    raise CheckpointError(f"the weights belong to no known architecture ({', '.join(DETECTORS)}); their names begin with {shown}")


def named_size(architecture: str, options: Options) -> str:
    """The named size whose networks have the same shape as ``options``, or the name of the family itself."""
    family = find_family(architecture)
    for name, configuration in family.configurations.items():
        named = dataclasses.asdict(family.options(**configuration))
        named["depths"] = type(options["depths"])(named["depths"])
        if all(named[key] == value for key, value in options.items() if key not in IRRELEVANT):
            return name
    return architecture


def detect_drct(tensors: Tensors) -> Options | None:
    """Options of a DRCT, see :class:`drct.networks.drct.DRCTOptions`."""
    if not {"conv_first.weight", "layers.0.adjust1.weight", "layers.0.swin1.attn.relative_position_bias_table"} <= tensors.keys():
        return None
    embed_dim, in_chans = tensors["conv_first.weight"].shape[:2]
    gc = tensors["layers.0.adjust1.weight"].shape[0]
    groups = count(tensors, r"layers\.(\d+)\.")
    heads = tuple(
        tuple(tensors[f"layers.{g}.swin{j + 1}.attn.relative_position_bias_table"].shape[1] for j in range(BLOCKS))
        for g in range(groups)
    )
    dims = tuple(embed_dim + j * gc for j in range(BLOCKS))
    hidden = [tensors[f"layers.0.swin{j + 1}.mlp.fc1.weight"].shape[0] for j in range(3)]
    window = window_of_table(tensors["layers.0.swin1.attn.relative_position_bias_table"])
    upsampler, scale = tail(tensors, in_chans)
    options: Options = {
        "upscale": scale,
        "in_chans": in_chans,
        "img_size": image_size(tensors, window),
        "embed_dim": embed_dim,
        "depths": (6,) * groups,
        "num_heads": tuple(h[0] for h in heads),
        "window_size": window,
        "gc": gc,
        "mlp_ratio": ratio(dims[:3], hidden),
        "upsampler": upsampler,
        "resi_connection": "1conv" if "conv_after_body.weight" in tensors else "identity",
        "qkv_bias": "layers.0.swin1.attn.qkv.bias" in tensors,
        "ape": "absolute_pos_embed" in tensors,
        "patch_norm": "patch_embed.norm.weight" in tensors,
    }
    return options | drct_heads(options, heads, dims)


def drct_heads(options: Options, heads: tuple[tuple[int, ...], ...], dims: tuple[int, ...]) -> Options:
    """How to say the heads of every block: by the published rule, else one ``head_dim``, else ``block_heads``."""
    groups = range(len(heads))
    head_dims = {dim // n for h in heads for dim, n in zip(dims, h, strict=True)}
    ways: list[Options] = [{"head_dim": None, "block_heads": None}]
    if len(head_dims) == 1:
        ways.append({"head_dim": head_dims.pop(), "block_heads": None})
    ways.append({"head_dim": None, "block_heads": heads[0]})
    for way in ways:
        try:
            candidate = DRCTOptions(**(options | way))
            if all(candidate.heads_of_group(g) == heads[g] for g in groups):
                return way
        except OptionError:
            continue
    raise OptionError(f"the attention heads of its blocks follow no rule: {heads}")


def detect_swinir(tensors: Tensors) -> Options | None:
    """Options of a SwinIR, see :class:`drct.networks.swinir.SwinIROptions`."""
    if not {"conv_first.weight", f"{FIRST_BLOCK}.attn.relative_position_bias_table"} <= tensors.keys() or is_hat(tensors):
        return None
    return window_options(tensors) | {
        "resi_connection": "3conv" if "conv_after_body.0.weight" in tensors else "1conv",
    }


def detect_hat(tensors: Tensors) -> Options | None:
    """Options of a HAT, see :class:`drct.networks.hat.HATOptions`."""
    if "conv_first.weight" not in tensors or not is_hat(tensors):
        return None
    options = window_options(tensors)
    d, window = options["embed_dim"], options["window_size"]
    cab = f"{FIRST_BLOCK}.conv_block.cab"
    # two windows, the smaller known, share one table: its side is the sum of theirs less one
    table = tensors["layers.0.residual_group.overlap_attn.relative_position_bias_table"]
    side = math.isqrt(table.shape[0])
    if side * side != table.shape[0] or side + 1 < 2 * window:
        raise ValueError(
            f"the table of its overlapping attention has {table.shape[0]} rows, which does not go with window {window}"
        )
    return options | {
        "resi_connection": "1conv" if "conv_after_body.weight" in tensors else "identity",
        "compress_ratio": d // tensors[f"{cab}.0.weight"].shape[0],
        "squeeze_factor": d // tensors[f"{cab}.3.attention.1.weight"].shape[0],
        "overlap_ratio": ratio((window,), [side + 1 - 2 * window]),
    }


def detect_mamba_drct(tensors: Tensors) -> Options | None:
    """Options of a MambaDRCT, see :class:`drct.networks.mamba_drct.MambaDRCTOptions`."""
    if not {"conv_first.weight", "layers.0.adjust1.weight", "layers.0.mamba1.ss2d.A_logs"} <= tensors.keys():
        return None
    embed_dim, in_chans = tensors["conv_first.weight"].shape[:2]
    gc = tensors["layers.0.adjust1.weight"].shape[0]
    dims = tuple(embed_dim + j * gc for j in range(BLOCKS))
    hidden = [tensors[f"layers.0.mamba{j + 1}.mlp.fc1.weight"].shape[0] for j in range(3)]
    inner = [tensors[f"layers.0.mamba{j + 1}.ss2d.conv2d.weight"].shape[0] for j in range(BLOCKS)]
    upsampler, scale = tail(tensors, in_chans)
    return {
        "upscale": scale,
        "in_chans": in_chans,
        "img_size": image_size(tensors, 1),
        "embed_dim": embed_dim,
        "depths": (6,) * count(tensors, r"layers\.(\d+)\."),
        "gc": gc,
        "mlp_ratio": ratio(dims[:3], hidden),
        "expand": ratio(dims, inner),
        "d_state": tensors["layers.0.mamba1.ss2d.A_logs"].shape[1],
        "upsampler": upsampler,
        "resi_connection": "1conv" if "conv_after_body.weight" in tensors else "identity",
        "ape": "absolute_pos_embed" in tensors,
        "patch_norm": "patch_embed.norm.weight" in tensors,
    }


FIRST_BLOCK = "layers.0.residual_group.blocks.0"


def is_hat(tensors: Tensors) -> bool:
    """Whether the first block has the channel attention that tells HAT from SwinIR."""
    return f"{FIRST_BLOCK}.conv_block.cab.0.weight" in tensors


def window_options(tensors: Tensors) -> Options:
    """What SwinIR and HAT say in the same way: groups of equal blocks under ``layers.N.residual_group.blocks.M``."""
    embed_dim, in_chans = tensors["conv_first.weight"].shape[:2]
    groups = range(count(tensors, r"layers\.(\d+)\."))
    table = "layers.{}.residual_group.blocks.0.attn.relative_position_bias_table"
    window = window_of_table(tensors[table.format(0)])
    upsampler, scale = tail(tensors, in_chans)
    return {
        "upscale": scale,
        "in_chans": in_chans,
        "img_size": image_size(tensors, window),
        "embed_dim": embed_dim,
        "depths": [count(tensors, rf"layers\.{g}\.residual_group\.blocks\.(\d+)\.") for g in groups],  # as metadata say it
        "num_heads": tuple(tensors[table.format(g)].shape[1] for g in groups),
        "window_size": window,
        "mlp_ratio": ratio((embed_dim,), [tensors[f"{FIRST_BLOCK}.mlp.fc1.weight"].shape[0]]),
        "upsampler": upsampler,
        "qkv_bias": f"{FIRST_BLOCK}.attn.qkv.bias" in tensors,
        "ape": "absolute_pos_embed" in tensors,
        "patch_norm": "patch_embed.norm.weight" in tensors,
    }


DETECTORS: dict[str, Callable[[Tensors], Options | None]] = {
    "drct": detect_drct,
    "swinir": detect_swinir,
    "hat": detect_hat,
    "mamba_drct": detect_mamba_drct,
}


# Measuring, for every detector ------------------------------------------------------------------------------------------------


def count(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number that the pattern's group takes among the names."""
    number = 1 + max((int(match[1]) for name in tensors if (match := re.match(pattern, name))), default=-1)
    if number > len(tensors):
        raise ValueError(f"it numbers {len(tensors)} tensors up to {number - 1}")
    return number


def window_of_table(table: Tensor) -> int:
    """Window side w from a relative position bias table of ``(2w - 1)**2`` rows."""
    side = math.isqrt(table.shape[0])
    if side * side != table.shape[0] or side % 2 == 0:
        raise ValueError(f"a relative position bias table has {table.shape[0]} rows, which is no (2w - 1)^2")
    return (side + 1) // 2


def ratio(dims: tuple[int, ...], hidden: list[int]) -> float:
    """The simplest number r with ``int(dim * r) == hidden`` for every pair."""
    low = max(h / d for d, h in zip(dims, hidden, strict=True))
    for digits in range(17):
        candidate = math.ceil(round(low * 10**digits, 6)) / 10**digits
        if all(int(d * candidate) == h for d, h in zip(dims, hidden, strict=True)):
            return candidate
    raise ValueError(f"the hidden widths {hidden} of its MLPs have no common ratio to {list(dims)}")


def tail(tensors: Tensors, in_chans: int) -> tuple[str, int]:
    """Upsampler and scale of ``pixelshuffle``, ``pixelshuffledirect`` and ``nearest+conv`` tails."""
    first = tensors.get("upsample.0.weight")
    if "conv_up1.weight" in tensors and "conv_hr.weight" in tensors:
        return "nearest+conv", 4 if "conv_up2.weight" in tensors else 2
    if "conv_before_upsample.0.weight" in tensors and "conv_last.weight" in tensors:
        if first is not None and first.shape[0] == 9 * first.shape[1]:
            return "pixelshuffle", 3
        return "pixelshuffle", 2 ** sum(1 for name in tensors if re.fullmatch(r"upsample\.\d+\.weight", name))
    if first is not None:
        scale = math.isqrt(first.shape[0] // in_chans)
        if scale * scale * in_chans != first.shape[0]:
            raise ValueError(f"upsample.0 has {first.shape[0]} outputs, which is no {in_chans} x scale^2")
        return "pixelshuffledirect", scale
    raise ValueError("it has no upsampler that is known: conv_before_upsample, upsample and conv_last are missing")


def image_size(tensors: Tensors, window: int) -> int:
    """Training patch: from absolute position embeddings, else from the number of windows in a shift mask, else 64."""
    if "absolute_pos_embed" in tensors:
        return math.isqrt(tensors["absolute_pos_embed"].shape[1])
    masks = [tensor for name, tensor in tensors.items() if name.endswith(".attn_mask")]
    return window * math.isqrt(masks[0].shape[0]) if masks else 64
