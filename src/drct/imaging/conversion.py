"""The two conversions between pixels of pictures and tensors of networks; there are no others in the house."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from drct.errors import ImageError
from drct.imaging.picture import native

if TYPE_CHECKING:
    from torch import Tensor

PEAK = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}


def _peak(dtype: DTypeLike) -> float:
    peak = PEAK.get(np.dtype(dtype).newbyteorder("="))
    if peak is None:
        raise ImageError(f"pixels of type {np.dtype(dtype)} are not supported: use uint8, uint16 or float32")
    return peak


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Make the input of a network from pixels.

    Args:
        pixels: ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)``; uint8, uint16 or float32 (taken as it is, 0..1 by convention).

    Returns:
        float32 ``(1, 3, H, W)``, contiguous, 0..1; grey is repeated in the three channels.

    Raises:
        ImageError: another shape or type, or float pixels that hold NaN or infinity (a network would spread them over the picture).
    """
    import torch

    peak = _peak(pixels.dtype)
    pixels = native(pixels)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ImageError(f"pixels of shape {pixels.shape} are neither H x W x 3 nor grey")
    # writable, or torch warns of what Pillow gives
    x = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    x = x.to(torch.float32, memory_format=torch.contiguous_format)
    if peak != 1:
        x.div_(peak)  # a true division: 255 becomes exactly 1, and every level comes back from from_tensor
    elif not _is_finite(x):
        raise ImageError("the pixels hold NaN or infinite values")
    return x.expand(3, -1, -1).contiguous().unsqueeze(0)


def from_tensor(tensor: Tensor, dtype: DTypeLike, grey: bool = False) -> np.ndarray:
    """Make pixels from the output of a network.

    Args:
        tensor: ``(1, 3, H, W)`` or ``(3, H, W)``, floats around 0..1, on any device.
        dtype: uint8 and uint16 are rounded to the nearest level and clipped; float32 is neither, so that values beyond 0..1
            survive.
        grey: average the three channels into one.

    Returns:
        ``(H, W, 3)``, or ``(H, W, 1)`` with ``grey``, contiguous.

    Raises:
        ImageError: another shape or type, or NaN or infinite values (half precision that overflowed).
    """
    import torch

    peak = _peak(dtype)
    x = tensor.detach()
    if x.ndim == 4 and x.shape[0] == 1:
        x = x[0]
    if x.ndim != 3 or x.shape[0] != 3:
        raise ImageError(f"a tensor of shape {tuple(tensor.shape)} is not one RGB image")
    x = x.float()
    if grey:
        x = x.mean(0, keepdim=True)
    if not _is_finite(x):
        raise ImageError("the network returned NaN or infinite values: try a higher precision")
    if peak != 1:
        # uint16 travels as int32, because few devices compute with it
        x = (x * peak).round_().clamp_(0, peak).to(torch.uint8 if peak == 255 else torch.int32)
    x = x.permute(1, 2, 0).clone(memory_format=torch.contiguous_format).cpu()  # a GPU sorts faster than a CPU
    return x.numpy().astype(dtype, copy=False)


def _is_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite; a sum shows that at once unless it overflows."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
