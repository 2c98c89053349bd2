"""Small things that the tests of this room share: a tiny network and a picture."""

from __future__ import annotations

import numpy as np
import torch

from drct.networks import SuperResolutionNetwork, create_network


def tiny_network(scale: int = 4) -> SuperResolutionNetwork:
    """A network small enough to run hundreds of times, with weights large enough that its windows matter."""
    network = create_network(
        "drct", scale=scale, embed_dim=8, gc=4, depths=[1], num_heads=[2], window_size=4, upsampler="pixelshuffledirect"
    )
    generator = torch.Generator().manual_seed(scale)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        # as after training: mostly interpolation, the rest a small residue
        network.upsample[0].weight *= 0.2
        network.upsample[0].bias.zero_()
    return network.eval()


def smooth_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 ``(H, W, C)``: waves of several lengths, since noise hides seams."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(channels):
        waves = sum(np.sin(rng.uniform(0, 0.6) * y + rng.uniform(0, 0.6) * x + rng.uniform(0, 6)) for _ in range(6))
        planes.append(127.5 + 20 * waves)
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)
