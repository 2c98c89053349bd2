"""What :func:`drct.engine.compile` returns, and the program for networks without a faster one."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

from drct.engine.accelerate import accelerate
from drct.engine.devices import DTYPES
from drct.engine.digits import in_all_digits
from drct.engine.memory import LiveBytes
from drct.errors import DeviceError, OptionError, OutOfMemoryError, is_out_of_memory
from drct.networks.base import SuperResolutionNetwork

DEVICE_FULL = ("out of memory", "ALLOC_FAILED")  # errors of the driver, of cuBLAS and of cuDNN are plain RuntimeErrors


class Program:
    """A network made ready for one device. Calling it upscales a batch.

    Attributes:
        scale: magnification.
        pad_multiple: sides that are multiples of this are computed without padding, the best choice for tiles.
        device: where it runs.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        architecture: name of the network family, for example ``"drct"``.
        in_chans: image channels.
        folded_multiply_adds: per pixel, of the groups after folding; None where nothing was folded.
        saved_multiply_adds: per pixel, by folding the reconstruction.
    """

    folded_multiply_adds: int | None = None
    saved_multiply_adds: int = 0

    def __init__(self, network: SuperResolutionNetwork, device: torch.device, precision: str) -> None:
        self.scale = network.scale
        self.pad_multiple = network.pad_multiple
        self.in_chans = network.in_chans
        self.architecture = network.architecture
        self.device = device
        self.precision = precision

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Neither copied nor sent to another process: most hold kernels and threads of this one."""
        raise DeviceError("a compiled program cannot be copied or pickled: copy the network, and compile that where it is to run")

    def __call__(self, x: Tensor) -> Tensor:
        """Upscale ``x``.

        Args:
            x: ``(N, in_chans, H, W)`` on any device, values 0..1, any H and W from 1 up; with ``ape`` those that padding makes
                ``img_size``.

        Returns:
            ``(N, in_chans, scale * H, scale * W)`` float32 on the program's device, not clipped to 0..1.

        Raises:
            OptionError: no tensor of floats, or of another shape than a batch of images.
            OutOfMemoryError: the device has not enough memory; try a smaller tile.
        """
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"{type(x).__module__}.{type(x).__name__}"
            raise OptionError(f"input is {kind}, but a tensor of floats within 0..1 is needed")
        if x.dim() != 4 or x.shape[1] != self.in_chans or 0 in x.shape:
            raise OptionError(f"input has shape {tuple(x.shape)}, but (N, {self.in_chans}, H, W) is needed")
        try:
            with self._alone():
                y = self.run(x.to(self.device, torch.float32))
            # what was made in inference mode could neither be changed in place nor take part in a loss
            return y if torch.is_inference_mode_enabled() else y.clone()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            by_device = isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in DEVICE_FULL)
            where = str(self.device) if by_device else "the computer"
            raise OutOfMemoryError(
                f"{where} has not enough memory for {x.shape[0]} image(s) of {x.shape[3]} x {x.shape[2]}: use a smaller tile"
            ) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, nothing that a caller may have set changes what is computed: gradients, autocast, another GPU, products
        that are rounded more."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            if self.device.type == "cuda":
                stack.enter_context(torch.cuda.device(self.device))  # Triton launches there, wherever the tensors are
            if self.precision == "fp32":
                stack.enter_context(in_all_digits(self.device.type))
            yield

    def run(self, x: Tensor) -> Tensor:
        """What a call does after the input was checked and brought to the device; inference mode is on, autocast is off."""
        raise TypeError(f"{type(self).__name__} does not define run")

    def describe(self) -> list[str]:
        """Which kernels run and why, one statement per line."""
        raise TypeError(f"{type(self).__name__} does not define describe")

    def memory_estimate(self, height: int, width: int, batch: int = 1) -> int:
        """Bytes needed on the device beside the weights for a batch of inputs of this size."""
        raise TypeError(f"{type(self).__name__} does not define memory_estimate")

    def warm_up(self, height: int, width: int, batch: int = 1) -> float:
        """Run once on a blank input of this size; returns the seconds that the first call took."""
        start = time.perf_counter()
        self(torch.zeros(batch, self.in_chans, height, width, dtype=torch.float32, device="cpu"))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def release(self) -> None:
        """Give up what is kept only to make later calls faster, for memory has run out."""

    def padded_pixels(self, height: int, width: int, batch: int) -> int:
        """Pixels that are computed, padding included."""
        m = self.pad_multiple
        return batch * (-(-height // m) * m) * (-(-width // m) * m)


class PlainProgram(Program):
    """A copy of the network itself, under autocast for lower precisions. Correct for every network.

    Args:
        reason: why this program was chosen.
        kernels: exchange single operations for native ones where that is possible.
    """

    def __init__(
        self, network: SuperResolutionNetwork, device: torch.device, precision: str, reason: str, kernels: bool = True
    ) -> None:
        super().__init__(network, device, precision)
        self.network = copy.deepcopy(network).eval().requires_grad_(False).to(device, torch.float32)
        self.reason = reason
        self.kernels = accelerate(self.network) if kernels else []
        self._bytes_per_pixel: float | None = None

    def run(self, x: Tensor) -> Tensor:
        if self.precision == "fp32":
            return self.network(x)
        with torch.autocast(self.device.type, DTYPES[self.precision]):
            y = self.network(x).float()
        if not torch.isfinite(y).all():
            raise DeviceError(f"{self.architecture} overflowed in {self.precision}: use bf16 or fp32")
        return y

    def describe(self) -> list[str]:
        how = "" if self.precision == "fp32" else f" under autocast to {self.precision}"
        return [f"plain {self.architecture} network on {self.device}{how}: {self.reason}", *self.kernels]

    def memory_estimate(self, height: int, width: int, batch: int = 1) -> int:
        if self._bytes_per_pixel is None:
            self._bytes_per_pixel = self._measure_bytes_per_pixel()
        return int(self.padded_pixels(height, width, batch) * self._bytes_per_pixel) + 2**24

    def _measure_bytes_per_pixel(self) -> float:
        """Largest sum of live tensors in a small run; a fifth is added for what operators allocate inside."""
        # position embeddings fit one size only
        side = self.network.options.img_size if getattr(self.network.options, "ape", False) else 2 * self.pad_multiple
        if self.device.type == "cuda":
            self.warm_up(side, side)  # libraries take their workspaces once, whatever the size
            torch.cuda.synchronize(self.device)
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.warm_up(side, side)
            peak = torch.cuda.max_memory_allocated(self.device) - before
        else:
            with LiveBytes() as live:
                self.warm_up(side, side)
            peak = live.peak
        return 1.2 * peak / side**2
