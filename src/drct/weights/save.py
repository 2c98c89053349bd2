"""Weight files from networks: our safetensors format, and the ``.pth`` that other programs expect."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from drct.errors import CheckpointError, ImageError, OptionError
from drct.networks import SuperResolutionNetwork, create_network
from drct.networks.defaults import usual_defaults
from drct.networks.drct import DRCT
from drct.networks.window_attention import MASKED, relative_position_index, window_partition
from drct.weights.files import SAFETENSORS_DTYPES, one_line, tensor_bytes, weights_sha256
from drct.weights.load import shortened

ROOM = 1 << 20  # bytes; a disk with less counts as full


def save_network(
    network: SuperResolutionNetwork,
    path: str | os.PathLike[str],
    *,
    licence: str | None = "",
    training: str | None = "",
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a network as safetensors: its weights without recomputable buffers, and what is needed to rebuild it.

    The same network and arguments give the same bytes. The file appears under its name only when it is complete.

    Args:
        network: anything that :func:`drct.create_network` or :func:`drct.load_network` returned; ``torch.compile`` does not matter.
        path: the file to write.
        licence: terms under which the weights may be used.
        training: one line on how they were made.
        metadata: further text entries.
        dtype: convert floating-point weights to another type of floats, for example to ``torch.float16`` to halve the file.

    Returns:
        The ``sha256`` that stands in the metadata, see :func:`drct.weights.weights_sha256`.

    Raises:
        CheckpointError: the file cannot be written, a weight is not finite in ``dtype``, or the network was changed so that its
            tensors, as those of ``weight_norm``, could not be loaded again.
        OptionError: ``dtype`` is no type of floats that safetensors has, an entry is no text, or ``network`` is none of drct.
    """
    path = Path(path)
    texts = {**(metadata or {}), "licence": "" if licence is None else licence, "training": "" if training is None else training}
    for name, text in texts.items():
        if not (_is_text(name) and _is_text(text)):
            raise OptionError(f"metadata {name!r} is {text!r:.80}, but names and values must be texts that UTF-8 can hold")
    if dtype is not None and not (dtype in SAFETENSORS_DTYPES and dtype.is_floating_point):
        raise OptionError(f"dtype is {dtype}, but weights are floats: use torch.float32, torch.float16 or torch.bfloat16")
    network = _as_published(network, path)
    tensors = {}
    for name, tensor in network.state_dict().items():
        tensor = tensor.detach().cpu()
        converted = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        if converted.dtype not in SAFETENSORS_DTYPES:
            raise CheckpointError(f"{path} was not written: {name} is {converted.dtype}, which safetensors has not: give a dtype")
        if not torch.isfinite(converted.float() if converted.itemsize == 1 else converted).all():  # fp8 has no isfinite
            raise CheckpointError(f"{path} was not written: {name} holds values that are not finite in {converted.dtype}")
        tensors[name] = converted.contiguous()
    entries = {
        **texts,
        "format": "pt",
        "architecture": network.architecture,
        "options": json.dumps(network.option_dict, sort_keys=True),
        "scale": str(network.scale),
        "sha256": weights_sha256(tensors),
    }
    write_atomically(path, lambda file: _write_safetensors(file, tensors, entries))
    return entries["sha256"]


def export_compat(network: SuperResolutionNetwork, path: str | os.PathLike[str]) -> None:
    """Write the ``.pth`` of the published code: weights under ``params_ema``, with the buffers that its loaders ask for.

    Raises:
        CheckpointError: other programs could not rebuild this network from its tensors, or the file cannot be written.
        OptionError: ``network`` is none of drct.
    """
    path = Path(path)
    state = compat_state_dict(_as_published(network, path), path)
    write_atomically(path, lambda file: torch.save({"params_ema": state}, file))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _as_published(network: SuperResolutionNetwork, path: Path) -> SuperResolutionNetwork:
    """The network without what ``torch.compile`` puts around it, if it has the tensors that loading it asks for.

    Raises:
        CheckpointError: it has others.
        OptionError: it is no network of drct.
    """
    network = getattr(network, "_orig_mod", network)
    if not isinstance(network, SuperResolutionNetwork):
        raise OptionError(f"network is a {type(network).__name__}, but must be a network of drct")
    published = _published_shapes(network.architecture, json.dumps(network.option_dict, sort_keys=True))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if shapes != published:
        odd = tuple(name for name in {**shapes, **published} if shapes.get(name) != published.get(name))
        raise CheckpointError(
            f"{path} was not written: these tensors are not as {network.architecture} has them: {shortened(odd)}; "
            "remove weight_norm and other changes of the network first"
        )
    return network


@functools.lru_cache(maxsize=4)
def _published_shapes(architecture: str, options: str) -> dict[str, torch.Size]:
    with usual_defaults(), torch.device("meta"):
        return {name: tensor.shape for name, tensor in create_network(architecture, **json.loads(options)).state_dict().items()}


def compat_state_dict(network: SuperResolutionNetwork, path: Path | None = None) -> dict[str, Tensor]:
    """The state dict of the published implementation, entries in its order, float32 on the CPU."""
    where = f"{path} was not written: " if path else ""
    if network.architecture not in COMPAT:
        raise CheckpointError(f"{where}there is no compatible format for {network.architecture}; export to safetensors instead")
    try:
        return COMPAT[network.architecture](network)
    except ValueError as error:
        raise CheckpointError(
            f"{where}other programs cannot rebuild this network: {error}; export to safetensors instead"
        ) from error


def drct_state_dict(network: SuperResolutionNetwork) -> dict[str, Tensor]:
    """DRCT: a position index in every block, a shift mask in blocks 2 and 4. Raises ValueError when it cannot be expressed."""
    if not isinstance(network, DRCT):
        raise ValueError("it is no DRCT")
    options = network.options
    if not options.follows_published_rule:
        raise ValueError("it departs from the published head rule or tail (head_dim, block_heads, upsampler, patch_norm or ape)")
    if options.img_range != 1.0 or options.qk_scale is not None:
        raise ValueError("img_range and qk_scale leave no trace in the tensors and must have their defaults")
    window = options.window_size
    index = relative_position_index(window)
    mask = shift_mask(compat_image_size(window), window, window // 2)
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if (block := re.fullmatch(r"(layers\.\d+\.swin[24])\.norm1\.weight", name)) and window > 1:
            state[f"{block[1]}.attn_mask"] = mask
        state[name] = tensor.detach().to("cpu", torch.float32).contiguous()
        if name.endswith("relative_position_bias_table"):
            state[name.replace("bias_table", "index")] = index
    return state


# How each family's published state dict is made; other families are added here.
COMPAT: dict[str, Callable[[SuperResolutionNetwork], dict[str, Tensor]]] = {"drct": drct_state_dict}


def compat_image_size(window: int) -> int:
    """Image side that the stored masks are made for: 64 as published, else the next multiple of the window above it.

    At least two windows, since the published code does not shift when the image is a single window.
    """
    return window * max(2, -(-64 // window))


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """Mask of shifted windows for a square image, as the published code stores it: ``((side/window)**2, window**2, window**2)``.

    The shift divides rows and columns into three bands each; pairs of pixels from different bands get -100, others 0.
    """
    position = torch.arange(side)
    band = (position >= side - window).long() + (position >= side - shift).long()
    region = 3 * band[:, None] + band[None, :]
    region = window_partition(region[None, :, :, None], window).reshape(-1, window**2)
    return (region[:, None, :] != region[:, :, None]).float() * MASKED


def write_atomically(path: Path, write: Callable[..., None]) -> None:
    """Call ``write(file)`` on a temporary file beside ``path``, flush it to disk and rename it.

    Raises:
        CheckpointError: the file cannot be written, or, where files can be locked, somebody else is writing it; a previous file of
            that name is untouched.
    """
    from drct.imaging.replacing import replacing  # here, since it brings libvips, which reading weights does not need

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            write(file)
    except (OSError, RuntimeError, ImageError) as error:
        raise CheckpointError(f"{path} cannot be written ({_reason(error, path)})") from error


def _reason(error: BaseException, path: Path) -> str:
    """What the system said. torch.save puts a line about positions in its container before it, or instead of it."""
    if isinstance(error, ImageError):
        return str(error).removeprefix(f"{path}: cannot be written: ")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return "No space left on device" if shutil.disk_usage(path.parent).free < ROOM else one_line(error)


def _write_safetensors(file, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:  # type: ignore[no-untyped-def]
    """The safetensors format, written here because the library orders metadata at random and so the bytes would change.

    https://huggingface.co/docs/safetensors: length of the header in 8 bytes, JSON header padded with spaces, data without gaps.
    """
    # wide types first keeps every tensor aligned
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        dtype, shape = SAFETENSORS_DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(tensor_bytes(tensors[name]))
