"""Perceptual loss: distances between the features of an image classifier (Johnson et al., ECCV 2016), as ESRGAN weights them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.errors import CheckpointError, OptionError, did_you_mean
from drct.evaluation.metric_weights import load_metric_weights
from drct.evaluation.perceptual import IMAGENET_MEAN, IMAGENET_STD
from drct.weights import read_weights

# Convolutions per stage of configurations D and E (Simonyan & Zisserman, arXiv 1409.1556); each stage but the first begins with a
# max pooling
STAGES = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)
# what the published training compares, before ReLU; VGG16 has no fourth convolution in its stages
PUBLISHED_WEIGHTS = {
    "vgg16": {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_3": 1.0, "conv4_3": 1.0, "conv5_3": 1.0},
    "vgg19": {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0},
}
VGG19_FILES = ("vgg19_features.safetensors", "vgg19-dcbb9e9d.pth")
VGG19_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"


def layer_positions(vgg_type: str) -> dict[str, int]:
    """Position in torchvision's ``features`` of each convolution ``convSTAGE_NUMBER``, in order."""
    positions: dict[str, int] = {}
    position = 0
    for stage, convolutions in enumerate(STAGES[vgg_type], 1):
        for number in range(1, convolutions + 1):
            positions[f"conv{stage}_{number}"] = position
            position += 2  # a ReLU follows each
        position += 1  # and a pooling each stage
    return positions


def check_layers(vgg_type: str, layers: Mapping[str, float]) -> None:
    """Raise :class:`OptionError` unless every layer, ``convS_N`` (before ReLU) or ``reluS_N``, is one of the network's."""
    known = layer_positions(vgg_type)
    for layer in layers:
        if layer not in known and layer.replace("relu", "conv") not in known:
            raise OptionError(f"{vgg_type} has no layer '{layer}'{did_you_mean(layer, [*known])}")
    if not layers:
        raise OptionError("layer_weights names no layer")


def load_features(vgg_type: str, layers: Iterable[str], path: str | Path | None = None) -> dict[str, Tensor]:
    """Convolutions of VGG16 or VGG19 that lead to some layers, as torchvision's ``features.N.weight`` and ``.bias``, float32.

    Without a path the folder ``DRCT_WEIGHTS`` is looked into; VGG16 is also found where the metrics keep it, see
    :mod:`drct.evaluation.metric_weights`.

    Raises:
        CheckpointError: no file, or one that lacks a convolution.
        DownloadError: VGG16 is neither here nor at its public address.
    """
    source: str | Path
    if path is not None:
        source = Path(path).expanduser()
        if not source.is_file():
            raise CheckpointError(f"perceptual weights {source} do not exist: correct perceptual_opt.path")
        tensors = read_weights(source).tensors
    elif vgg_type == "vgg16":
        source = "vgg16_features.safetensors"
        tensors = load_metric_weights(source)
    else:
        source = _find_vgg19()
        tensors = read_weights(source).tensors
    found: dict[str, Tensor] = {}
    inputs = 3
    for layer, position in _leading_to(vgg_type, layers).items():
        outputs = CHANNELS[int(layer[4]) - 1]
        for name, shape in (("weight", (outputs, inputs, 3, 3)), ("bias", (outputs,))):
            key = f"features.{position}.{name}"
            if key not in tensors or tensors[key].shape != shape:
                raise CheckpointError(
                    f"perceptual weights {source} lack '{key}' of shape {shape}: they are not those of {vgg_type}"
                )
            found[key] = tensors[key].float()
        inputs = outputs
    return found


def _find_vgg19() -> Path:
    folder = os.environ.get("DRCT_WEIGHTS")
    for name in VGG19_FILES if folder else ():
        path = Path(folder or "").expanduser() / name
        if path.is_file():
            return path
    raise CheckpointError(
        f"the perceptual loss needs the ImageNet weights of vgg19: get {VGG19_URL}, then set perceptual_opt.path to the file or "
        "DRCT_WEIGHTS to its folder (or use vgg_type: vgg16)"
    )


def _leading_to(vgg_type: str, layers: Iterable[str]) -> dict[str, int]:
    """Positions of the convolutions up to the last of some layers."""
    positions = layer_positions(vgg_type)
    last = max(positions[layer.replace("relu", "conv")] for layer in layers)
    return {layer: position for layer, position in positions.items() if position <= last}


class PerceptualLoss(nn.Module):
    """Weighted distances between the features of two images in several layers of a fixed classifier.

    Args:
        features: from :func:`load_features`.
        layer_weights: factor of each layer, ``convS_N`` before ReLU or ``reluS_N`` after it.
        vgg_type: ``"vgg16"`` or ``"vgg19"``.
        perceptual_weight: factor of the distance of the features; 0 leaves it out.
        style_weight: factor of the distance of their Gram matrices (Gatys et al., CVPR 2016); 0 leaves it out.
        criterion: ``"l1"``, ``"l2"`` (mean squares) or ``"fro"`` (the norm of the difference).
        use_input_norm: normalize as the classifier was trained, by ImageNet's mean and deviation.
        range_norm: images are in -1..1 instead of 0..1.
        shift: cut so many rows and columns away before comparing, split at random between the two sides. The pooling of a
            classifier looks at a fixed grid; where the upsampler's own grid always lies alike on it, a network learns to please it
            by a checkerboard.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],
        layer_weights: Mapping[str, float],
        vgg_type: str = "vgg19",
        *,
        perceptual_weight: float = 1.0,
        style_weight: float = 0.0,
        criterion: str = "l1",
        use_input_norm: bool = True,
        range_norm: bool = False,
        shift: int = 0,
    ) -> None:
        super().__init__()
        check_layers(vgg_type, layer_weights)
        self.layer_weights = dict(layer_weights)
        self.perceptual_weight, self.style_weight = perceptual_weight, style_weight
        self.criterion = criterion
        self.use_input_norm, self.range_norm = use_input_norm, range_norm
        self.shift = shift
        self.convolutions = nn.ModuleDict()
        for layer, position in _leading_to(vgg_type, layer_weights).items():
            weight = features[f"features.{position}.weight"]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.load_state_dict({"weight": weight, "bias": features[f"features.{position}.bias"]})
            self.convolutions[layer] = conv
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, sr: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """``{"percep": ..., "style": ...}``, those with a weight; ``sr`` and ``gt`` are ``(N, 3, H, W)`` in 0..1."""
        if self.shift:
            top, left = torch.randint(self.shift + 1, (2,)).tolist()
            height, width = (side - self.shift for side in gt.shape[-2:])
            sr, gt = (x[..., top : top + height, left : left + width] for x in (sr, gt))
        with torch.no_grad():
            targets = self.taps(gt)
        found = self.taps(sr)
        losses = {}
        if self.perceptual_weight > 0:
            parts = [w * self._distance(found[layer], targets[layer]) for layer, w in self.layer_weights.items()]
            losses["percep"] = self.perceptual_weight * torch.stack(parts).sum()
        if self.style_weight > 0:
            parts = [w * self._distance(gram(found[layer]), gram(targets[layer])) for layer, w in self.layer_weights.items()]
            losses["style"] = self.style_weight * torch.stack(parts).sum()
        return losses

    def taps(self, x: Tensor) -> dict[str, Tensor]:
        """Features of ``(N, 3, H, W)`` images in the layers that count."""
        if self.range_norm:
            x = (x + 1) / 2
        if self.use_input_norm:
            x = (x - self.get_buffer("mean")) / self.get_buffer("std")
        found: dict[str, Tensor] = {}
        for layer, conv in self.convolutions.items():
            if re.fullmatch(r"conv[2-5]_1", layer):
                x = F.max_pool2d(x, 2)
            x = conv(x)
            if layer in self.layer_weights:
                found[layer] = x
            x = F.relu(x)
            if (after := layer.replace("conv", "relu")) in self.layer_weights:
                found[after] = x
        return found

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = a.float(), b.float()
        if self.criterion == "l1":
            return F.l1_loss(a, b)
        if self.criterion == "l2":
            return F.mse_loss(a, b)
        return torch.linalg.vector_norm(a - b)


def gram(x: Tensor) -> Tensor:
    """Products of all pairs of channels, averaged over positions and channels: ``(N, C, H, W)`` to ``(N, C, C)``."""
    flat = x.float().flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])
