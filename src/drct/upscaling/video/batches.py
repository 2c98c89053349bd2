"""Several frames through the network at once, where one would not fill the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from drct.errors import OutOfMemoryError
from drct.imaging import from_tensor, to_tensor
from drct.upscaling import memory

if TYPE_CHECKING:
    from drct.upscaling.upscaler import Upscaler


def frames_at_once(upscaler: Upscaler, size: tuple[int, int], target: tuple[int, int]) -> int:
    """How many frames of a size, height and width, go through the network together on their way to a target size.

    One on CPUs; on GPUs as many as have the area of the largest tile, up to 8, if they are computed whole and in one pass.
    """
    height, width = size
    scales = upscaler.scales_for(height, width, height=target[0], width=target[1])
    if upscaler.device.type != "cuda" or len(scales) != 1 or target != (height * scales[0], width * scales[0]):
        return 1
    program = upscaler.program(scales[0])
    limit = upscaler.tile_limit(scales[0])
    whole = upscaler.tile == "off" or (upscaler.tile == "auto" and memory.choose_tile(program, height, width) is None)
    if not whole or (limit is not None and max(size) > limit):
        return 1
    return memory.images_at_once(program, height, width)


def enlarge(upscaler: Upscaler, images: list[np.ndarray], height: int, width: int) -> tuple[list[np.ndarray], list[str]]:
    """Frames of one size, ``(H, W, 3)`` uint16, made larger, and notices; several go through the network together.

    Raises:
        OutOfMemoryError: the device has not enough memory for one of them.
    """
    if len(images) > 1:
        (scale,) = upscaler.scales_for(*images[0].shape[:2], height=height, width=width)
        try:
            with torch.inference_mode():
                larger = upscaler.rgb_program(scale)(torch.cat([to_tensor(image) for image in images]))
                return [from_tensor(image, np.uint16) for image in larger], []
        except (OutOfMemoryError, torch.OutOfMemoryError):
            notices = [f"memory ran out with {len(images)} frames at once: went on one by one"]
    else:
        notices = []
    # outside of the handler, whose exception would keep the tensors alive
    results = [upscaler.upscale(image, width=width, height=height) for image in images]
    return [result.pixels for result in results], notices + [notice for result in results for notice in result.notices]
