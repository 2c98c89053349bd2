"""Begin training as an interpolation instead of noise.

A fresh network has to learn first that its output resembles its input. That linear part is known: the shallow features carry the
colours through the global residual connection to the tail, and a tail of one convolution can interpolate them. Three shallow
channels are set to the colours and the tail to an interpolation of those three, so that a run starts near the quality of
bicubic upscaling and spends its iterations on what interpolation cannot do. Everything else keeps its usual initialization.
"""

from __future__ import annotations

import torch

from drct.errors import OptionError
from drct.networks.base import SuperResolutionNetwork, UpsampleOneStep


@torch.no_grad()
def linear_start(network: SuperResolutionNetwork) -> None:
    """Set the linear part of a fresh network with a ``pixelshuffledirect`` tail in place.

    Raises:
        OptionError: the network has another tail, no convolution before it, or fewer shallow channels than colours.
    """
    tail = getattr(network, "upsample", None)
    first = getattr(network, "conv_first", None)
    if not isinstance(tail, UpsampleOneStep) or not isinstance(first, torch.nn.Conv2d):
        raise OptionError("linear_start needs a network with the tail 'pixelshuffledirect'")
    colours, scale = network.in_chans, network.scale
    if first.out_channels < colours:
        raise OptionError(f"linear_start needs at least {colours} shallow channels")
    last = network.get_submodule("conv_after_body")
    if isinstance(last, torch.nn.Sequential):  # resi_connection 3conv
        last = last[-1]
    if not isinstance(last, torch.nn.Conv2d):
        raise OptionError("linear_start needs a convolution after the groups: resi_connection 'identity' has none")
    first.weight[:colours] = 0
    first.weight[range(colours), range(colours), 1, 1] = 1
    first.bias[:colours] = 0  # type: ignore[index]
    last.weight[:colours] = 0  # the body leaves the colours alone at first
    last.bias[:colours] = 0  # type: ignore[index]
    conv = tail[0]
    assert isinstance(conv, torch.nn.Conv2d)
    assert conv.bias is not None
    conv.bias.zero_()
    conv.weight.zero_()
    kernels = interpolation_kernels(scale)  # (scale**2, 3, 3)
    for c in range(colours):
        conv.weight[c * scale**2 : (c + 1) * scale**2, c] = kernels


def interpolation_kernels(scale: int) -> torch.Tensor:
    """The 3 x 3 kernels by which each of the ``scale**2`` sub-pixels of a pixel is interpolated; ``(scale**2, 3, 3)``.

    The parabola through three neighbours, along rows and columns: exact for every quadratic image.
    """
    t = (torch.arange(scale) + 0.5) / scale - 0.5  # where the sub-pixels lie, relative to the pixel's centre
    line = torch.stack([(t * t - t) / 2, 1 - t * t, (t * t + t) / 2], -1)
    return (line[:, None, :, None] * line[None, :, None, :]).reshape(scale**2, 3, 3)


@torch.no_grad()
def resample_tail(network: SuperResolutionNetwork, weight: torch.Tensor, bias: torch.Tensor, scale: int) -> None:
    """Set the ``pixelshuffledirect`` tail from that of the same network for another scale.

    A tail gives each pixel ``scale x scale`` sub-pixels; those of the new scale are area averages of the old ones, so the network
    starts as its older sibling followed by an area resize, which is close to where training will take it.

    Args:
        network: receives the tail in place.
        weight: the other tail's convolution, ``(channels * scale**2, d, 3, 3)``.
        bias: its bias, ``(channels * scale**2,)``.
        scale: the other network's magnification.

    Raises:
        OptionError: the network has another tail.
    """
    tail = getattr(network, "upsample", None)
    if not isinstance(tail, UpsampleOneStep):
        raise OptionError("the upsampler can be taken over from another scale only with the tail 'pixelshuffledirect'")
    conv = tail[0]
    assert isinstance(conv, torch.nn.Conv2d)
    assert conv.bias is not None
    area = area_weights(scale, network.scale)
    for own, other in ((conv.weight, weight), (conv.bias, bias)):
        phases = other.float().view(network.in_chans, scale, scale, *other.shape[1:])
        own.copy_(torch.einsum("yv,xu,cvu...->cyx...", area, area, phases).reshape(own.shape))


def area_weights(size: int, out: int) -> torch.Tensor:
    """How much of each of ``size`` equal pieces of a unit lies in each of ``out`` equal pieces, normalized; ``(out, size)``."""
    edges = torch.arange(out + 1)[:, None] / out, torch.arange(size + 1)[None] / size
    overlap = torch.minimum(edges[0][1:], edges[1][:, 1:]) - torch.maximum(edges[0][:-1], edges[1][:, :-1])
    return overlap.clamp(min=0) * out
