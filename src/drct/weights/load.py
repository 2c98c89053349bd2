"""Networks from weight files."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from drct.errors import CheckpointError, ModelNotFoundError, OptionError
from drct.networks import SuperResolutionNetwork, create_network
from drct.networks.defaults import usual_defaults
from drct.weights.detect import detect
from drct.weights.files import WeightFile, is_own, one_line, read_weights
from drct.weights.models import find_model

SHOWN = 4  # names of tensors in an error message
ROOM = 1 << 20  # elements that a network may have beyond those of a file; what does not fit is then told name by name
COMPUTED = 1 << 28  # position indices of all blocks; the published networks have at most 11 million
TAIL = ("upsample.", "conv_before_upsample.", "conv_up", "conv_hr.", "conv_last.")  # what may follow the body, by its names
UNTRACED = ("img_range", "qk_scale")
LARGEST = 65536  # no option of a network is larger; metadata of an unknown file are not trusted beyond it


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What :func:`load_into` did.

    Attributes:
        loaded: names that were copied.
        missing: names of the network that the file lacks.
        unexpected: names of the file that the network lacks.
        mismatched: ``name: shape in the file, shape in the network`` of tensors that do not fit.
        skipped: names that were left out on request.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether file and network have the same tensors, apart from those skipped on request."""
        return not (self.missing or self.unexpected or self.mismatched)

    def problems(self) -> str:
        """What does not fit, with the first few names of each kind."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.mismatched}
        return "; ".join(f"{len(names)} {kind} ({shortened(names)})" for kind, names in kinds.items() if names)

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensors"]
        if self.skipped:
            parts.append(f"skipped {len(self.skipped)} ({shortened(self.skipped)})")
        if not self.complete:
            parts.append(self.problems())
        return "; ".join(parts)


def shortened(names: tuple[str, ...]) -> str:
    """The first few names, and how many more there are."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def load_network(
    path_or_name: str | os.PathLike[str], *, scale: int | None = None, key: str | None = None, notices: list[str] | None = None
) -> SuperResolutionNetwork:
    """Build the network that a weight file belongs to and load it.

    Args:
        path_or_name: a weight file, or the name of a bundled, downloadable or local model (see :func:`drct.list_models`).
        scale: the magnification that is wanted; only checked, since it is a property of the weights.
        key: dictionary key of the weights in a ``.pth`` file; by default averaged weights come first.
        notices: receives what is doubtful about the file; without this list Python warns of it.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: the file cannot be read, belongs to no known architecture, does not fit, or has another scale.
        OptionError: ``scale`` is no whole number, or ``path_or_name`` no name.
        ModelNotFoundError: no file and no model of that name.
        DownloadError: the model had to be downloaded and could not.
    """
    if scale is not None and (not isinstance(scale, numbers.Integral) or isinstance(scale, bool)):
        raise OptionError(f"scale is {scale!r}, but must be a whole number")
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise OptionError(f"path_or_name is {path_or_name!r:.80}, but must be the name of a model or a file")
    if "://" in str(path_or_name):
        raise ModelNotFoundError(f"{path_or_name} is an address: download the file first, and give its name")
    file = read_weights(find_model(path_or_name), key=key)
    network = network_of(file)
    if scale is not None and network.scale != scale:
        raise CheckpointError(f"{file.path} upscales x{network.scale}, but x{scale} was asked for: choose another model or scale")
    load_into(network, file, notices=notices)
    return network.eval()


def network_of(file: WeightFile) -> SuperResolutionNetwork:
    """A fresh network of the architecture and sizes of a weight file, by its metadata if it is one of ours, else by its tensors.

    A file may claim sizes that it does not hold; no more memory is taken than its own weights could fill.
    """
    try:
        name, options = detect(file.tensors | file.buffers)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    problem = "has metadata that do not describe a network" if is_own(file.metadata) else "describes no network that can be built"
    try:
        _check_sizes(file, options)
        if is_own(file.metadata):
            architecture, stated = file.metadata["architecture"], json.loads(file.metadata["options"])
            _check_metadata(architecture, stated, name, options)
            name, options = architecture, stated
        with usual_defaults():
            return create_network(name, **options)
    # sizes that no tensor can have are RuntimeErrors of torch, as is too deep JSON
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError, OptionError) as error:
        raise CheckpointError(f"{file.path} {problem} ({one_line(error)})") from error


def _check_sizes(file: WeightFile, found: dict[str, Any]) -> None:
    """Raise CheckpointError where the tensors are larger than what is stored, or small ones ask for a large network."""
    storages = [tensor.untyped_storage() for tensor in file.tensors.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    claimed = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in file.tensors.values())
    if claimed > held:  # a stored number can stand for a whole tensor
        raise CheckpointError(f"{file.path} is damaged: its weights are {claimed} bytes by their shapes, but it holds {held}")
    window, blocks = found.get("window_size", 0), sum(found["depths"])
    # every block of every family has more than two square matrices
    if 2 * blocks * found["embed_dim"] ** 2 > ROOM + sum(tensor.numel() for tensor in file.tensors.values()):
        raise CheckpointError(f"{file.path} describes a network with more weights than the file has")
    if blocks * (window**2 * (1 + found.get("overlap_ratio", 0))) ** 2 > COMPUTED:
        raise CheckpointError(f"{file.path} has windows of {window} pixels a side: no machine can attend within them")


# options that tensors show only roughly, or that can be said in several ways
AMBIGUOUS = frozenset(
    {"num_heads", "head_dim", "block_heads", "mlp_ratio", "compress_ratio", "squeeze_factor", "overlap_ratio", "expand"}
)


def _check_metadata(architecture: str, stated: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Raise ValueError where metadata contradict what the tensors show.

    Attention heads can be said in several ways and ratios be rounded; their shapes are compared when the tensors are loaded.
    """
    from drct.networks.registry import find_family

    if find_family(architecture) is not find_family(name):
        raise ValueError(f"it says {architecture}, but the tensors are those of {name}")
    for key, value in stated.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(n, (int, float)) and not abs(n) <= LARGEST for n in numbers) or len(numbers) > LARGEST:
            raise ValueError(f"{key} is {str(value)[:40]}")
    for key, value in found.items():
        if key in AMBIGUOUS or (key == "img_size" and not found.get("ape")):
            continue
        stated_value = stated.get(key, value)
        if key == "depths" and "gc" in found:  # of dense groups only the number shows
            value, stated_value = len(value), len(stated_value)
        if stated_value != value:
            raise ValueError(f"{key} is {stated_value}, but the tensors show {value}")
    if abs(stated.get("mlp_ratio", found["mlp_ratio"]) - found["mlp_ratio"]) >= 1:
        raise ValueError(f"mlp_ratio is {stated['mlp_ratio']}, but the tensors show {found['mlp_ratio']}")


def load_into(
    network: nn.Module,
    file: WeightFile,
    *,
    strict: bool = True,
    skip_upsampler: bool = False,
    notices: list[str] | None = None,
) -> LoadReport:
    """Copy the weights of a file into a network, whatever device and precision it has.

    Args:
        network: receives the weights in place.
        file: from :func:`read_weights`.
        strict: raise unless every tensor fits; otherwise copy those that do.
        skip_upsampler: leave ``upsample.*`` as it is, as training x4 from x2 needs, and the whole tail where the file has
            another one.
        notices: as for :func:`load_network`.

    Raises:
        CheckpointError: something does not fit and ``strict`` is set, or nothing fits at all, or the file says that its network
            computes in another range or scales its scores otherwise; the network is unchanged.
    """
    own: dict[str, Tensor] = network.state_dict()
    skipped: tuple[str, ...] = ()
    if skip_upsampler:
        kinds = [_kind_of_tail(names) for names in (own, file.tensors)]
        left = TAIL if kinds[0] != kinds[1] else ("upsample.", "conv_up2.")
        skipped = tuple(n for n in dict.fromkeys([*own, *file.tensors]) if n.startswith(left))
    wanted = {n: t for n, t in own.items() if n not in skipped}
    given = {n: t for n, t in file.tensors.items() if n not in skipped}
    both = [n for n in wanted if n in given]
    fitting = [n for n in both if given[n].shape == wanted[n].shape and given[n].is_floating_point()]
    mismatched = tuple(f"{n}: {_shape(given[n])} in the file, {_shape(wanted[n])} in the network" for n in both if n not in fitting)
    report = LoadReport(
        tuple(fitting),
        tuple(n for n in wanted if n not in given),
        tuple(n for n in given if n not in wanted),
        mismatched,
        skipped,
    )
    if not fitting or (strict and not report.complete):
        kind = type(network).__name__
        if isinstance(network, SuperResolutionNetwork):
            kind = f"{network.architecture} x{network.scale}"
        raise CheckpointError(f"{file.path} does not fit the network ({kind}): {report.problems()}")
    _check_untraced(network, file)
    doubts = _check_buffers(network, file)
    for name in fitting:
        if not torch.isfinite(given[name].to(torch.float32)).all():
            raise CheckpointError(f"{file.path} holds values that are not finite ({name}): the training that made it diverged")
    with torch.no_grad():
        for name in fitting:
            wanted[name].copy_(given[name])
    for doubt in doubts:
        if notices is None:
            warnings.warn(doubt, stacklevel=2)
        else:
            notices.append(doubt)
    return report


def _kind_of_tail(names: Iterable[str]) -> str:
    found = {name.partition(".")[0] for name in names}
    if "conv_hr" in found:
        return "nearest+conv"
    return "pixelshuffle" if {"conv_before_upsample", "conv_last"} & found else "pixelshuffledirect"


def _check_untraced(network: nn.Module, file: WeightFile) -> None:
    """Options that change what the same tensors compute must be those that the file was trained with, where it tells."""
    if not isinstance(network, SuperResolutionNetwork) or not is_own(file.metadata):
        return
    try:
        stated = json.loads(file.metadata["options"])
        own = vars(network.options)
        wrong = {key: (stated[key], own[key]) for key in UNTRACED if key in stated and key in own}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file.path} has metadata that do not describe a network ({one_line(error)})") from error
    for key, (theirs, ours) in wrong.items():
        if theirs != ours:
            raise CheckpointError(f"{file.path} was trained with {key} {theirs}, but the network has {ours}")


def _shape(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return shape if tensor.is_floating_point() else f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def _check_buffers(network: nn.Module, file: WeightFile) -> list[str]:
    """Stored position indices must be the ones that the network computes; another order would scramble its biases.

    Returns:
        What is doubtful.
    """
    computed = dict(network.named_buffers())
    for name, stored in file.buffers.items():
        ours = computed.get(name)
        if ours is None:
            continue
        if stored.is_floating_point():  # cast with the weights: bf16 cannot hold all indices, so ours are rounded as they were
            ours = ours.to(stored.dtype).to(torch.float32)
        if not torch.equal(stored.to(ours.device, ours.dtype), ours):
            raise CheckpointError(f"{file.path} numbers relative positions in its own way ({name}): it is not of this architecture")
    indexed = any(name.endswith("relative_position_index") for name in file.buffers)
    masked = any(name.endswith("attn_mask") for name in file.buffers)
    shifted = isinstance(network, SuperResolutionNetwork) and network.architecture in ("drct", "swinir")
    if shifted and indexed and not masked:
        return [
            f"{file.path} stores position indices but no shift masks: if it was trained with img_size not above window_size, "
            "its windows were never shifted and results will differ"
        ]
    return []
