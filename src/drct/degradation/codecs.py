"""Compression by real encoders and decoders, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from drct.errors import ImageError
from drct.imaging import from_tensor, read_bytes, to_tensor
from drct.imaging._vips import cause, enter, pyvips

FileKind = Literal["jpeg", "webp"]


def encode(pixels: np.ndarray, kind: FileKind, quality: int, full_chroma: bool = False) -> bytes:
    """An image file in memory.

    Args:
        pixels: uint8 ``(H, W, 3)``.
        kind: its format.
        quality: 1..100.
        full_chroma: keep the resolution of the chroma; JPEG files of 4:2:0 halve it, and WebP always does.

    Raises:
        ImageError: the encoder refuses the image.
    """
    enter(f"{kind} in memory")
    h, w, c = pixels.shape
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(pixels).data, w, h, c, "uchar").copy(interpretation="srgb")
    try:
        if kind == "webp":
            return bytes(image.webpsave_buffer(Q=quality, keep="none"))
        return bytes(image.jpegsave_buffer(Q=quality, subsample_mode="off" if full_chroma else "on", keep="none"))
    except pyvips.Error as error:
        raise ImageError(f"{w} x {h} pixels cannot be compressed as {kind}: {cause(error)}") from None


def recode(x: Tensor, quality: Tensor, kinds: Sequence[FileKind]) -> Tensor:
    """What real JPEG and WebP files leave of images.

    Args:
        x: ``(N, 3, H, W)`` in 0..1.
        quality: ``(N,)``, 1..100, rounded to whole numbers.
        kinds: format for each image.

    Returns:
        ``(N, 3, H, W)`` in 0..1 with 8 bits, on the device of ``x``, which waits for the CPU.
    """
    decoded = []
    for image, q, kind in zip(x.clamp(0, 1).unbind(0), quality.round().int().tolist(), kinds, strict=True):
        data = encode(from_tensor(image, np.uint8), kind, q)
        decoded.append(to_tensor(read_bytes(data, f"{kind} in memory").pixels))
    return torch.cat(decoded).to(x.device, x.dtype)
