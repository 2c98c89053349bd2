"""Reading weight files of any layout into plain tensors, without ever running code that a file brings along.

The kind of a file is told by its first bytes, not by its name: zip archives and legacy pickles of ``torch.save`` go through
the safe unpickler of torch, safetensors files through the safetensors library, everything else is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drct.errors import CheckpointError, did_you_mean

# Where trainers keep the weights, best first: averaged weights (EMA) are what papers report.
SURE_AVERAGES = ("params_ema", "params-ema", "ema", "model_ema", "state_dict_ema", "ema_state_dict")
SURE_KEYS = ("params", "state_dict", "model_state_dict", "model", "net", "network")
# These may as well stand for something else beside the tensors of a bare state dict, which are the weights then.
UNSURE_AVERAGES = ("net_g_ema", "netG_ema", "model_g_ema", "generator_ema", "g_ema", "ema_weights", "weights_ema")
UNSURE_KEYS = ("weights", "net_g", "netG", "model_g", "generator")
LAYOUT_KEYS = (*SURE_AVERAGES, *UNSURE_AVERAGES, *SURE_KEYS, *UNSURE_KEYS)
# Places of what a training keeps beside its generator; the state of an optimizer is numbered.
NO_GENERATOR = re.compile(r"(.*\.)?((discriminator|net_d|netD|model_d)(_ema)?|optim[^.]*|scheduler[^.]*|scaler|state\.\d+)(\..*)?")
# Wrappers that trainers leave in front of every name.
GENERATORS = ("netG.", "net_g.", "generator.")  # beside a discriminator
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", *GENERATORS)
# Constants that follow from the options; some programs store them, we do not.
RECOMPUTABLE = re.compile(r"(^|\.)(relative_position_index(_SA|_OCA)?|attn_mask)$")
_quiet = threading.Lock()  # catch_warnings is not safe in threads: of two, the later one may bring the other's filters back
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a weight file holds.

    Attributes:
        path: the file.
        tensors: weights under the published names, prefixes such as ``module.`` removed.
        buffers: constants that the file stores although they can be recomputed (position indices, shift masks).
        metadata: the text entries of a safetensors file; empty for others.
        layout: the dictionary key the weights stood under, for example ``"params_ema"``, or ``"model.state_dict"`` for a dictionary
            within one; ``""`` for a bare state dict.
    """

    path: Path
    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor]
    metadata: dict[str, str]
    layout: str

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights; float32 if they differ."""
        dtypes = {tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point()}
        return dtypes.pop() if len(dtypes) == 1 else torch.float32


def read_weights(path: str | os.PathLike[str], *, key: str | None = None) -> WeightFile:
    """Read a ``.pth``, ``.pt`` or ``.safetensors`` file.

    Args:
        path: the file.
        key: take the weights under this dictionary key instead of the best one found (see ``LAYOUT_KEYS``); ``params_ema`` also
            takes ``params`` where there are no averages. A safetensors file holds one set of weights and no keys, so nothing is
            chosen there.

    Raises:
        CheckpointError: the file is missing, empty, truncated, of another kind, holds code, or has no weights.
    """
    path = Path(path)
    metadata: dict[str, str] = {}
    kind = file_kind(path)
    if kind == "safetensors":
        content, metadata = _read_safetensors(path, shapes_only=False)
        file = _weight_file(path, content, metadata, None)
    else:
        file = _weight_file(path, read_pickle(path), metadata, key)
    if is_own(metadata) and metadata["sha256"] != weights_sha256(file.tensors):
        raise CheckpointError(f"{path} is damaged: its weights no longer match the sha256 written with them; fetch the file again")
    return file


def read_shapes(path: Path) -> WeightFile:
    """As :func:`read_weights`, but only names and shapes of the tensors can be relied on. Fast, for looking through folders."""
    kind = file_kind(path)
    if kind == "safetensors":
        return _weight_file(path, *_read_safetensors(path, shapes_only=True), None, shapes_only=True)
    return _weight_file(path, read_pickle(path, mmap=kind == "zip"), {}, None)


def _weight_file(path: Path, content: Any, metadata: dict[str, str], key: str | None, *, shapes_only: bool = False) -> WeightFile:
    tensors, layout = _choose(content, key, path)
    tensors = _strip_prefixes(tensors)
    if not tensors:
        raise CheckpointError(f"{path} holds no weights")
    for name, tensor in tensors.items():
        if not name.isprintable() or len(name) > 200:
            raise CheckpointError(f"{path} is damaged: a tensor is called {name[:40]!r}")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(f"{path} holds a sparse or quantized tensor ({name}): only plain weights can be read")
        if tensor.is_meta and not shapes_only:
            raise CheckpointError(f"{path} holds shapes without values ({name}): it was saved from the meta device")
    buffers = {name: tensor for name, tensor in tensors.items() if RECOMPUTABLE.search(name)}
    weights = {name: tensor for name, tensor in tensors.items() if name not in buffers}
    return WeightFile(path, weights, buffers, metadata, layout)


def is_own(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata were written by :func:`drct.weights.save_network`."""
    return {"architecture", "options", "sha256"} <= metadata.keys()


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of weights, independent of the file format that carries them.

    SHA-256 over, for each name in sorted order, the UTF-8 line ``NAME DTYPE D0xD1x...\\n`` (safetensors names of data types,
    ``F32``, ``F16``; an empty shape for scalars), followed by the elements in C order, little endian.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = "x".join(map(str, tensor.shape))
        dtype = SAFETENSORS_DTYPES.get(tensor.dtype, str(tensor.dtype))
        digest.update(f"{name} {dtype} {shape}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Elements of a tensor in C order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def file_kind(path: Path) -> str:
    """``"zip"`` or ``"legacy"`` (both of ``torch.save``) or ``"safetensors"``, by the first bytes of the file."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: give a weight file (.safetensors, .pth or .pt)")
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: give a weight file (.safetensors, .pth or .pt)") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    if not head:
        raise CheckpointError(f"{path} is empty: fetch the file again")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{":  # asked before pickles, since the length of the header in front of it may begin with any byte
        return "safetensors"
    if head[:1] == b"\x80":
        return "legacy"
    raise CheckpointError(f"{path} is no weight file: it is neither safetensors nor written by torch.save")


def _read_safetensors(path: Path, shapes_only: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
            if shapes_only:
                return {n: torch.empty(file.get_slice(n).get_shape(), device="meta") for n in names}, metadata
            return {n: file.get_tensor(n) for n in names}, metadata
    except MemoryError as error:
        raise CheckpointError(f"{path} cannot be read: not enough memory") from error
    except RuntimeError as error:  # of torch: the system gives no room for it
        raise CheckpointError(f"{path} cannot be read ({one_line(error)})") from error
    except (SafetensorError, OSError) as error:
        if "UTF-8" in str(error) and any("\udc80" <= letter <= "\udcff" for letter in str(path)):
            raise CheckpointError(f"{path} cannot be read: safetensors opens no file whose name is no UTF-8: rename it") from error
        raise CheckpointError(f"{path} is truncated or damaged ({one_line(error)}): fetch the file again") from error


def read_pickle(path: Path, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, by the safe unpickler; with ``mmap`` the tensors stay in the file.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than plain data.
    """
    try:
        with _quiet, warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # torch wonders about pickle protocols; what follows is checked anyway
            # given a name, torch goes by its suffix
            source = str(path) if mmap and path.suffix != ".safetensors" else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=source is not file)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except pickle.UnpicklingError as error:
        text = str(error)
        found, operand = re.search(r"GLOBAL ([\w.]+)", text), re.search(r"Unsupported operand (\d+)", text)
        # 105 and 111 make instances; from 130 on come extensions and what pickle protocol 4 brought
        if found or (operand and (int(operand[1]) in (105, 111) or int(operand[1]) >= 130)):
            named = f" ({one_line(found[1])})" if found else ""
            raise CheckpointError(
                f"{path} was refused: it holds more than plain weights{named}, and reading it could run code; "
                "ask its author for a .safetensors file"
            ) from error
        reason = text.partition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
        raise CheckpointError(f"{path} is damaged or no weight file ({one_line(reason) or 'its pickle cannot be read'})") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} claims more data than fits into memory: it is damaged") from error
    # the unpickler walks whatever bytes a damaged file holds, so any error type can come out of it
    except Exception as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript program, no weight file: ask its author for the state dict or a .safetensors file"
            ) from error
        raise CheckpointError(f"{path} is truncated or damaged ({one_line(error)}): fetch the file again") from error


def _choose(content: Any, key: str | None, path: Path) -> tuple[dict[str, Tensor], str]:
    """The dictionary of tensors within what a file holds, and the key it stood under."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    places = dict(sorted(_places(content).items(), key=lambda item: len(item[0])))
    nested = {".".join(place): tensors for place, tensors in places.items()}
    if key is not None:
        if key == "params_ema" and key not in nested and "params" in nested:
            key = "params"  # as BasicSR does: a run without averages has only these
        if key not in nested:
            known = f"it has {_shown(list(nested))}" if nested else "its weights stand under no key"
            raise CheckpointError(f"{path} has no weights under '{key}'{did_you_mean(key, nested)}; {known}")
        return nested[key], key
    bare = _tensors(content)
    if bare:
        sure = next((name for name in (*SURE_AVERAGES, *SURE_KEYS) if (name,) in places), None)
        return (bare, "") if sure is None else (places[(sure,)], sure)
    if not places:
        return {}, ""
    candidates = [place for place in places if not NO_GENERATOR.fullmatch(".".join(place))]
    way_out = f"say which by key (drct export {path} --key NAME --to safetensors writes a file of one)"
    if not candidates:
        raise CheckpointError(f"{path} holds no weights of a generator, only {_shown(list(nested))}: if one is meant, {way_out}")
    chosen, *rivals = _best(candidates)
    if rivals:
        raise CheckpointError(f"{path} has weights under {_shown(['.'.join(place) for place in (chosen, *rivals)])}: {way_out}")
    return places[chosen], ".".join(chosen)


def _best(places: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The place of the weights to take, or those among which only the user can choose; the outer ones come first in ``places``."""
    named = [place for place in places if any(part in LAYOUT_KEYS for part in place)]
    if not named:
        return [place for place in places if len(place) == len(places[0])]
    first = min(map(_rank, named))
    outer = [place for place in places if len(place) < first[0]]  # without a name, since the named ones are no further out
    return outer + [place for place in named if _rank(place) == first]


def _places(content: Mapping[Any, Any], depth: int = 2) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """Dictionaries of tensors within a dictionary by the keys that lead there."""
    places: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and str(key).isprintable():
            if tensors := _tensors(value):
                places[(str(key),)] = tensors
            elif depth > 1:
                places |= {(str(key), *place): tensors for place, tensors in _places(value, depth - 1).items()}
    return places


def _rank(place: tuple[str, ...]) -> tuple[int, list[int]]:
    """Lowest for the weights to take: of outer dictionaries before inner ones, then in the order of ``LAYOUT_KEYS``."""
    return len(place), sorted(LAYOUT_KEYS.index(part) if part in LAYOUT_KEYS else len(LAYOUT_KEYS) for part in place)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(k): v.detach() for k, v in content.items() if isinstance(v, Tensor)}


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove wrappers in front of the names. Of a GAN's state dict only the generator is kept."""
    if "n_averaged" in tensors:  # which torch's AveragedModel counts beside its module
        tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    while True:
        for prefix in PREFIXES:
            inner = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            if inner and (len(inner) == len(tensors) or prefix in GENERATORS):
                tensors = inner
                break
        else:
            return tensors


def one_line(error: BaseException | str) -> str:
    """The beginning of an error message that may have many lines and quote what stands in a file."""
    text = " ".join(str(error).split()) or ("" if isinstance(error, str) else type(error).__name__)
    text = "".join(c for c in text if c.isprintable())
    return text if len(text) <= 160 else text[:157] + "..."
