"""Features between the groups of a network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from drct.errors import OptionError
from drct.explain.subjects import Subject, device_of, enough_memory
from drct.imaging import to_tensor


def groups_of(subject: Subject) -> nn.ModuleList:
    """The groups of the body: RDG of DRCT, RSTB of SwinIR, RHAG of HAT.

    Raises:
        OptionError: the network has no list of groups called ``layers``.
    """
    groups = getattr(subject.network, "layers", None)
    if not isinstance(groups, nn.ModuleList) or not len(groups):
        raise OptionError(f"{subject.name} has no groups named 'layers.N': its features by depth cannot be shown")
    return groups


def group_features(subject: Subject, pixels: np.ndarray) -> dict[str, Tensor]:
    """What comes out of every group for one image.

    Args:
        subject: network in eval mode.
        pixels: LR image ``(h, w, 3)``.

    Returns:
        ``{"layers.0": (h, w, C), ...}`` float32 on the CPU, in order of depth; padding is cut off.

    Raises:
        OptionError: the network has no groups, or their output is no map ``(1, H, W, C)``.
    """
    features: dict[str, Tensor] = {}
    h, w = pixels.shape[:2]
    if not h * w:
        raise OptionError(f"an image of {w} x {h} pixels has no features: give a larger one")
    handles = []
    for index, group in enumerate(groups_of(subject)):

        def keep(_: nn.Module, __: object, out: object, name: str = f"layers.{index}") -> None:
            if not isinstance(out, Tensor) or out.dim() != 4 or out.shape[1] < h or out.shape[2] < w:
                raise OptionError(f"{subject.name}: what leaves {name} is no feature map (1, H, W, C)")
            features[name] = out[0, :h, :w].detach().float().cpu()

        handles.append(group.register_forward_hook(keep))
    try:
        x = to_tensor(pixels).to(device_of(subject.network))
        with enough_memory(x), torch.inference_mode():
            subject.network(x)
    finally:
        for handle in handles:
            handle.remove()
    return features


def as_picture(feature: Tensor, show: str) -> np.ndarray:
    """What a sheet shows of a feature map ``(h, w, C)``.

    Args:
        feature: from :func:`group_features`.
        show: ``"mean"`` of the absolute values over channels, ``(h, w)``; ``"pca"``, the three main components as RGB in 0..1,
            ``(h, w, 3)``, each stretched by itself; or the number of a channel from 0, ``(h, w)``.

    Raises:
        OptionError: anything else, or a channel that does not exist.
    """
    channels = feature.shape[-1]
    if show == "mean":
        return feature.abs().mean(-1).numpy()
    if show == "pca":
        return _components(feature)
    if not show.isdecimal():
        raise OptionError(f"--show is '{show}': use mean, pca or the number of a channel")
    if int(show) >= channels:
        raise OptionError(f"channel {show} does not exist: the features have channels 0 to {channels - 1}")
    return feature[..., int(show)].numpy()


def _components(feature: Tensor) -> np.ndarray:
    """The three main components, each from its 1st to its 99th percentile."""
    h, w, channels = feature.shape
    x = feature.flatten(0, 1).double()
    x = x - x.mean(0)
    _, vectors = torch.linalg.eigh(x.T @ x)
    main = vectors[:, -3:].flip(1)
    # an eigenvector has no sign of its own: let its largest entry be positive
    main = main * main.gather(0, main.abs().argmax(0, keepdim=True)).sign()
    projected = (x @ main).reshape(h, w, -1).numpy()
    low, high = np.percentile(projected, (1, 99), axis=(0, 1))
    scaled = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.concatenate([scaled, np.zeros((h, w, 3 - min(3, channels)))], axis=-1)
