"""LAM: local attribution maps (Gu & Dong, CVPR 2021, arXiv 2011.11036), as the DRCT paper uses them.

How much does each input pixel matter for what a network draws inside a small window? Gradients of the window's detail are
integrated along a path of images that starts blurred and ends sharp:

    x_i = K(s_{i+1}) * x,    d_i = fold (K(s_{i+1}) - K(s_i)) * x,    s = linspace(sigma, 0, fold + 1)
    attribution = mean_i  grad D(F(x_i)) . d_i

K(s) is a normalized Gaussian, F the network, D the sum of gradient magnitudes of the window. The diffusion index says how widely
the attribution spreads: 100 (1 - Gini coefficient), larger is wider.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from drct.engine.accelerate import accelerate
from drct.errors import OptionError
from drct.explain.cost import gradient_memory
from drct.explain.extras import need
from drct.explain.subjects import Subject, device_of, enough_memory
from drct.imaging import to_tensor
from drct.imaging.replacing import replacing
from drct.networks import SuperResolutionNetwork
from drct.upscaling.memory import free_memory

SIGMA, FOLD, KERNEL_SIZE = 1.2, 50, 9  # of the paper
CPU_PIXELS = 64 * 64  # LR pixels in a batch that keep a CPU busy; more leave its caches and gain nothing
GPU_SHARE = 0.5  # of free memory
WIDEST = 1e4  # pixels of the Gaussian that a path may begin with, more than any image has
EPSILON = 1e-5  # keeps the Gaussian of width zero finite


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What one network draws on.

    Attributes:
        gradient: signed attribution ``(C, h, w)`` on the LR pixels.
        map: ``(h, w)``: its magnitude summed over colours, divided by its maximum; 0..1.
        diffusion_index: 0..100, larger when more pixels take part.
        sr: output of the network for the sharp image, ``(scale * h, scale * w, C)`` float32, clipped to 0..1.
    """

    gradient: np.ndarray
    map: np.ndarray
    diffusion_index: float
    sr: np.ndarray


@dataclasses.dataclass(frozen=True)
class Window:
    """A square of SR pixels: top-left corner ``x`` (to the right) and ``y`` (down), and its side."""

    x: int
    y: int
    size: int = 16

    @classmethod
    def in_the_middle(cls, height: int, width: int, size: int) -> Window:
        """One in the middle of ``height`` x ``width`` pixels, if it fits into them at all."""
        return cls(max(0, (width - size - 1) // 2), max(0, (height - size - 1) // 2), size)

    def check(self, height: int, width: int, *, whole: bool = True) -> None:
        """Raise OptionError unless the window and the pixel after it lie inside ``height`` x ``width`` pixels; its first one alone
        if not ``whole``."""
        if self.size < 1:
            raise OptionError(f"the window is {self.size} pixels wide, but must be at least 1")
        if not (0 <= self.x < width and 0 <= self.y < height):
            raise OptionError(
                f"point {self.x},{self.y} is outside the image of {width} x {height} pixels: "
                f"X is from 0 to {width - 1}, Y from 0 to {height - 1}"
            )
        if not whole:
            return
        if self.x + self.size > width - 1 or self.y + self.size > height - 1:
            last_x, last_y = width - 1 - self.size, height - 1 - self.size
            hint = f"X may be at most {last_x}, Y at most {last_y}" if min(last_x, last_y) >= 0 else "choose a smaller window"
            raise OptionError(
                f"a window of {self.size} pixels at {self.x},{self.y} does not fit into the image of {width} x {height} pixels: "
                f"{hint}"
            )


def attribute(
    network: SuperResolutionNetwork,
    lr: Tensor,
    window: Window,
    *,
    sigma: float = SIGMA,
    fold: int = FOLD,
    kernel_size: int = KERNEL_SIZE,
    batch: int | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Attribution:
    """Attribution map of a window for one network, which is left as it was.

    Args:
        network: in eval mode, on the device to compute on.
        lr: ``(1, C, h, w)`` float32, 0..1.
        window: in SR pixels.
        sigma: blur at the beginning of the path, in LR pixels.
        fold: steps of the path.
        kernel_size: side of the blur kernels, odd.
        batch: steps in one forward and backward pass; by default what half of a GPU's free memory holds, and on a CPU as
            many as make up 64 x 64 pixels; at least one.
        advance: called with steps done and steps in all.

    Raises:
        OptionError: the shape is another one, the window does not fit, the image is too small for the kernel, or the output in the
            window does not depend on the image.
    """
    if lr.dim() != 4 or lr.shape[:2] != (1, network.in_chans):
        raise OptionError(f"the image has shape {tuple(lr.shape)}, but (1, {network.in_chans}, h, w) is needed")
    h, w = lr.shape[-2:]
    window.check(h * network.scale, w * network.scale)
    _check_path(h, w, sigma, fold, kernel_size)
    device = device_of(network)
    batch = min(fold, batch or batch_size(network, h, w))
    network = copy.deepcopy(network).requires_grad_(False)
    accelerate(network)
    total = np.zeros((network.in_chans, h, w))
    sr = torch.empty(0)
    for start in range(0, fold, batch):
        images, changes = path(lr, sigma, fold, kernel_size, range(start, min(start + batch, fold)))
        x = images.to(device).requires_grad_()
        with enough_memory(x, "use a smaller one"), torch.enable_grad():
            sr = network(x)
            (gradient,) = torch.autograd.grad(detail(sr, window).sum(), x)
        # a window without any detail has no gradient: its step counts as zero, as published
        total += (gradient.nan_to_num(0.0, 0.0, 0.0).cpu().double() * changes.double()).sum(0).numpy()
        if advance is not None:
            advance(min(start + batch, fold), fold)
    gradient_map = (total / fold).astype(np.float32)
    magnitude = np.abs(gradient_map.sum(0))
    if not magnitude.max() > 0:
        raise OptionError(f"the output in the window at {window.x},{window.y} does not depend on the image: choose another window")
    normalized = magnitude / magnitude.max()
    last = sr[-1].detach().clamp(0, 1).permute(1, 2, 0).cpu().numpy()  # the path ends at the image itself
    return Attribution(gradient_map, normalized, diffusion_index(normalized), last)


def batch_size(network: SuperResolutionNetwork, height: int, width: int) -> int:
    """Steps of the path that fit into memory at once, at least one."""
    device = device_of(network)
    if device.type != "cuda":
        return max(1, CPU_PIXELS // (height * width))
    return max(1, int(GPU_SHARE * free_memory(device) / gradient_memory(network, height, width)))


def _check_path(height: int, width: int, sigma: float, fold: int, kernel_size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise OptionError(f"the kernel size is {kernel_size}, but must be an odd number")
    if fold < 1:
        raise OptionError(f"the path has {fold} steps, but needs at least 1")
    if not 0 < sigma <= WIDEST:
        raise OptionError(f"sigma is {sigma}, but must be above 0 and at most {WIDEST:.0f}")
    if min(height, width) <= kernel_size // 2:
        raise OptionError(
            f"the LR image of {width} x {height} pixels is too small: LAM needs at least {kernel_size // 2 + 1} pixels a side"
        )


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """Normalized Gaussian on a ``size`` x ``size`` grid, float64; width zero gives a single one in the middle."""
    at = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-(at**2) / (2 * (sigma + EPSILON) ** 2))
    kernel = line[:, None] * line[None, :]
    return kernel / kernel.sum()


def path(lr: Tensor, sigma: float, fold: int, kernel_size: int, steps: range) -> tuple[Tensor, Tensor]:
    """Images and their derivatives at some steps, each ``(len(steps), C, h, w)`` float32 on the CPU; borders reflect."""
    sigmas = np.linspace(sigma, 0, fold + 1)
    ends = torch.stack([gaussian_kernel(kernel_size, sigmas[i + 1]) for i in steps])
    starts = torch.stack([gaussian_kernel(kernel_size, sigmas[i]) for i in steps])
    kernels = torch.cat([ends, (ends - starts) * fold])[:, None]
    pad = kernel_size // 2
    colours = F.pad(lr[0].cpu().double()[:, None], (pad,) * 4, mode="reflect")  # (C, 1, h, w)
    filtered = F.conv2d(colours, kernels).transpose(0, 1).float()
    return filtered[: len(steps)], filtered[len(steps) :]


def detail(sr: Tensor, window: Window) -> Tensor:
    """Sum of gradient magnitudes over a window of ``(N, C, H, W)``, by forward differences; ``(N,)``."""
    part = sr[..., window.y : window.y + window.size + 1, window.x : window.x + window.size + 1]
    dy = part[..., 1:, :-1] - part[..., :-1, :-1]
    dx = part[..., :-1, 1:] - part[..., :-1, :-1]
    return (dy**2 + dx**2).sqrt().sum((1, 2, 3))


def diffusion_index(attribution: np.ndarray) -> float:
    """100 (1 - Gini coefficient) of the values of a map: near 0 if one pixel holds all, 100 if all are equal."""
    values = np.sort(attribution.astype(np.float64).ravel()) + 1e-7
    n = values.size
    gini = ((2 * np.arange(1, n + 1) - n - 1) * values).sum() / (n * values.sum())
    return float((1 - gini) * 100)


def density(attribution: np.ndarray) -> np.ndarray:
    """Gaussian kernel density of a map ``(h, w)``, divided by its maximum.

    The bandwidth is by Scott's rule, as in ``scipy.stats.gaussian_kde`` with these weights; on a grid it is a convolution. A small
    fixed one, such as 1/70 of the spread, would smooth nothing on a map of LR pixels.
    """
    h, w = attribution.shape
    weights = attribution.astype(np.float64) / attribution.sum(dtype=np.float64)
    bandwidth = np.sum(weights**2) ** (1 / 6)
    ys, xs = np.mgrid[:h, :w]
    covariance = np.cov(np.stack([ys.ravel(), xs.ravel()]), aweights=weights.ravel(), ddof=0) * bandwidth**2
    covariance /= (1 - np.sum(weights**2)) or 1.0  # all on a single pixel there is nothing to correct
    # a map on a single line or pixel has no inverse covariance; a thousandth of a pixel is below what a figure shows
    inverse = np.linalg.inv(covariance + 1e-6 * np.eye(2))
    dy, dx = np.mgrid[1 - h : h, 1 - w : w]
    kernel = np.exp(-0.5 * (inverse[0, 0] * dy**2 + 2 * inverse[0, 1] * dy * dx + inverse[1, 1] * dx**2))
    shape = (3 * h - 2, 3 * w - 2)
    spread = np.fft.irfft2(np.fft.rfft2(weights, shape) * np.fft.rfft2(kernel, shape), shape)[h - 1 : 2 * h - 1, w - 1 : 2 * w - 1]
    return np.clip(spread / spread.max(), 0, 1)


def low_resolution(hr: np.ndarray, scale: int) -> np.ndarray:
    """Pillow's bicubic reduction of ``(H, W, 3)`` uint8 whose sides are multiples of ``scale``: the LR image of the method.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    image = need("PIL.Image")
    h, w = hr.shape[:2]
    return np.array(image.fromarray(hr).resize((w // scale, h // scale), image.Resampling.BICUBIC))


def crop_to_multiple(hr: np.ndarray, subjects: Sequence[Subject]) -> np.ndarray:
    """Cut the right and bottom of an image so that the scales of all networks divide its sides.

    Raises:
        OptionError: nothing is left.
    """
    multiple = int(np.lcm.reduce([s.network.scale for s in subjects]))
    h, w = (side - side % multiple for side in hr.shape[:2])
    if not h or not w:
        raise OptionError(f"the image of {hr.shape[1]} x {hr.shape[0]} pixels is too small for scale {multiple}")
    return hr[:h, :w]


def attribute_all(
    hr: np.ndarray,
    subjects: Sequence[Subject],
    window: Window,
    *,
    sigma: float = SIGMA,
    fold: int = FOLD,
    advance: Callable[[str, int, int], None] | None = None,
) -> list[Attribution]:
    """Attribution of one window of an HR image ``(H, W, 3)`` uint8, already cut to a multiple of the scales, for several networks.

    Args:
        advance: called with the name of the network, steps done and steps in all.
    """
    window.check(*hr.shape[:2])
    results = []
    for subject in subjects:
        lr = to_tensor(low_resolution(hr, subject.network.scale))

        def step(done: int, total: int, name: str = subject.name) -> None:
            if advance is not None:
                advance(name, done, total)

        results.append(attribute(subject.network, lr, window, sigma=sigma, fold=fold, advance=step))
    return results


def check_maps(file: Path) -> None:
    """Raise OptionError where :func:`save_maps` would replace a file that it has not written."""
    if not file.exists():
        return
    try:
        with zipfile.ZipFile(file) as archive:
            ours = "window.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        ours = False
    if not ours:
        raise OptionError(f"{file} exists and holds no maps of this command, which go beside the figure: choose another output")


def save_maps(file: str | os.PathLike[str], subjects: Sequence[Subject], results: Sequence[Attribution], window: Window) -> None:
    """Write raw maps as .npz: ``window`` (x, y, size), and for each network ``NAME/attribution``, ``/gradient``,
    ``/diffusion_index``; bytes of names that are no text become ``\\udcNN``.

    Raises:
        ImageError: the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {"window": np.array([window.x, window.y, window.size])}
    for subject, result in zip(subjects, results, strict=True):
        name = subject.name.encode(errors="backslashreplace").decode()
        arrays[f"{name}/attribution"] = result.map
        arrays[f"{name}/gradient"] = result.gradient
        arrays[f"{name}/diffusion_index"] = np.array(result.diffusion_index)
    with replacing(Path(file)) as out:
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
