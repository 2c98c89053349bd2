"""Writing a model in another file format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from drct.errors import OptionError
from drct.weights.files import SAFETENSORS_DTYPES, read_weights
from drct.weights.load import load_network
from drct.weights.models import DOWNLOADABLE, find_model
from drct.weights.save import export_compat, save_network

FORMATS = ("safetensors", "compat")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_model(
    model: str | os.PathLike[str],
    to: Literal["safetensors", "compat"],
    output: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    dtype: str | None = None,
    licence: str | None = None,
    training: str | None = None,
    overwrite: bool = False,
    notices: list[str] | None = None,
) -> Path:
    """Write a weight file in another format.

    ``safetensors`` holds the weights and what rebuilds the network, without recomputable buffers. Other programs take such a
    DRCT for unshifted or do not know it; for them there is ``compat``: a ``.pth`` with ``params_ema`` and all published buffers.

    Args:
        model: a weight file or a model's name.
        to: the format.
        output: the file to write; default ``NAME.safetensors`` or ``NAME_compat.pth`` in the current folder.
        key: which weights of a ``.pth`` to take.
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"`` (safetensors only); default as in the file.
        licence: terms of use for the metadata; default those of the file or its card.
        training: one line on the training for the metadata; default that of the file or its card.
        overwrite: replace an existing output.
        notices: receives what is doubtful about the file; without this list Python warns of it.

    Returns:
        The file that was written.

    Raises:
        OptionError: unknown format or precision, or the output exists.
        CheckpointError: the model cannot be read or written, or other programs could not rebuild it.
    """
    if to not in FORMATS:
        raise OptionError(f"format '{to}' is unknown: use {' or '.join(FORMATS)}")
    if dtype is not None and (dtype not in DTYPES or to != "safetensors"):
        raise OptionError(f"dtype '{dtype}' is not possible: use {', '.join(DTYPES)}, with safetensors")
    path = find_model(model)
    target = Path(output) if output is not None else Path(path.stem + (".safetensors" if to == "safetensors" else "_compat.pth"))
    if target.resolve() == path.resolve():
        raise OptionError(f"{target} is the input: give another output")
    if target.exists() and not overwrite:
        raise OptionError(f"{target} exists: give another output, or overwrite it (--overwrite)")
    if (target.suffix.lower() == ".safetensors") != (to == "safetensors"):
        raise OptionError(f"{target}: {to} is written to files that end in {'.safetensors' if to == 'safetensors' else '.pth'}")
    network = load_network(path, key=key, notices=notices)
    if to == "compat":
        export_compat(network, target)
        return target
    file = read_weights(path, key=key)
    as_in_file = file.dtype if file.dtype in SAFETENSORS_DTYPES else torch.float32
    card = next((card for card in DOWNLOADABLE if card.file == path.name), None)
    save_network(
        network,
        target,
        licence=licence or file.metadata.get("licence") or (card.licence if card else ""),
        training=training or file.metadata.get("training") or (card.training if card else ""),
        dtype=as_in_file if dtype is None else DTYPES[dtype],
    )
    return target
