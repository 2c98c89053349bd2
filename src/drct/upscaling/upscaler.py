"""One picture in, one larger picture out: networks chosen for the scale, tiles, and what pictures carry beside their colours."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from drct import engine
from drct.engine.views import self_ensemble
from drct.errors import ImageError, OptionError, OutOfMemoryError, did_you_mean
from drct.imaging import Encoding, Picture, resize, resize_rows, to_depth, visible_range
from drct.imaging.picture import native
from drct.networks import SuperResolutionNetwork
from drct.upscaling import memory
from drct.upscaling.alpha import bleed
from drct.upscaling.callbacks import nothing_told, shielded
from drct.upscaling.files import UpscaledFile, upscale_file
from drct.upscaling.options import FIDELITY_MODEL, OVERLAP
from drct.upscaling.passes import Pass, Plans, Progress, Stages, TilesTooLarge, Upscaled, UpscaledPicture, is_whole, target_size
from drct.upscaling.strips import Alpha, Colours, Rows, Shares, opacity
from drct.upscaling.tiles import Program, Source, TilePlan, ladder, plan_tiles, upscale_strips
from drct.weights import load_network
from drct.weights.models import family

DEFAULT_SCALE = 4
STRETCH = 1.02  # an exact size this little beyond a network's is reached by the resize, not by another pass through a network


class Upscaler:
    """Makes images larger. The networks are loaded when they are first needed and stay loaded.

    Args:
        model: name of a model (see :func:`drct.list_models`), a weight file, or a network. A family name such as ``"drct-light"``
            stands for its networks of all scales, of which the one that fits the wanted scale best is used.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``: bf16 on GPUs that are made for it, and fp32 on every CPU, even
            where bf16 is up to twice as fast: it changes a few 8-bit values in a hundred by one step, and 16-bit and float images
            deserve more digits than it has. What an image becomes should not depend on the kind of processor unasked.
        tile: ``"auto"`` chooses by the device's memory and takes the next smaller size when memory runs out; ``"off"`` takes images
            whole; a number is the side of the tiles in input pixels.
        overlap: what neighbouring tiles share, in input pixels.
        ensemble: average over the eight flips and rotations of the image: slightly better, eight times slower.
        alpha: ``"network"`` upscales transparency like a grey image, ``"resize"`` by bicubic interpolation.

    Raises:
        OptionError: an option is out of range.
        ModelNotFoundError, CheckpointError, DownloadError: the model cannot be had.
        DeviceError: device or precision are not available here.

    Example:
        >>> upscaler = Upscaler("drct-light-x4")                  # doctest: +SKIP
        >>> upscaler(rgb).shape                                   # doctest: +SKIP
        (1920, 2560, 3)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | SuperResolutionNetwork = FIDELITY_MODEL,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        tile: int | Literal["auto", "off"] = "auto",
        overlap: int = OVERLAP,
        ensemble: bool = False,
        alpha: Literal["network", "resize"] = "network",
    ) -> None:
        if not isinstance(alpha, str) or alpha not in ("network", "resize"):
            raise OptionError(f"alpha is {alpha!r}, but must be 'network' or 'resize'")
        if not (tile in ("auto", "off") if isinstance(tile, str) else is_whole(tile) and tile > 0):
            raise OptionError(f"tile is {tile!r}, but must be 'auto', 'off' or a number of pixels")
        if not (is_whole(overlap) and overlap >= 0):
            raise OptionError(f"overlap is {overlap!r}, but must be a whole number of pixels and not negative")
        if not isinstance(ensemble, (bool, np.bool_)):
            raise OptionError(f"ensemble is {ensemble!r}, but must be True or False")
        if not isinstance(model, (str, os.PathLike, SuperResolutionNetwork)):
            raise OptionError(f"model is {model!r:.80}, but must be a name, a file or a network of drct")
        if isinstance(model, SuperResolutionNetwork) and any(p.is_meta for p in model.parameters()):
            raise OptionError("the network has shapes without values: it was made on the meta device, and no weights were loaded")
        self.device = engine.resolve_device(device)
        fixed = "fp32" if precision == "auto" and self.device.type == "cpu" else precision
        self.precision = engine.resolve_precision(fixed, self.device)
        self._asked: dict[str, Any] = {
            "model": model.architecture if isinstance(model, SuperResolutionNetwork) else str(model),
            "strength": None,
            "precision": precision,
        }
        # plain numbers, since plans are written as JSON
        self.tile = tile if isinstance(tile, str) else int(tile)
        self.overlap = int(overlap)
        self.ensemble = bool(ensemble)
        self.alpha = alpha
        self.notices: list[str] = []
        # by magnification: what is shown to users, and the network or where it lies
        self._networks: dict[int, tuple[str, Path | Loaded]] = self._find(model)
        self._programs: dict[int, engine.Program] = {}
        self._largest_tile: dict[int, int] = {}  # by scale, once memory ran out
        self._fixed_tiles: set[int] = set()  # scales whose tiles do not depend on the memory that is free
        self._inside = 0  # of keeping_tiles
        self._before: tuple[set[int], dict[int, int]] = set(), {}
        self._digests: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """To be sent to another process, which compiles its own programs: they hold kernels and threads of this one."""
        return {**self.__dict__, "_programs": {}}

    def _find(self, model: str | os.PathLike[str] | SuperResolutionNetwork) -> dict[int, tuple[str, Path | Loaded]]:
        """Networks by scale. A single model is loaded at once, since only its file knows its scale."""
        if isinstance(model, SuperResolutionNetwork):
            return {model.scale: (model.architecture, Loaded(model))}
        if not os.path.isfile(model) and (here := networks_here(str(model))):
            return here
        network = load_network(model, notices=self.notices)
        return {network.scale: (str(model), Loaded(network))}

    def program(self, scale: int) -> engine.Program:
        """The program of the network with this magnification, loaded and compiled on first use."""
        _, held = self._held(scale)
        if scale not in self._programs:
            network = held.network if isinstance(held, Loaded) else load_network(held, notices=self.notices)
            if network.in_chans not in (1, 3):
                raise OptionError(f"the network has {network.in_chans} image channels: only grey and RGB networks upscale pictures")
            self._programs[scale] = engine.compile(network, self.device, self.precision)
        return self._programs[scale]

    def rgb_program(self, scale: int) -> Program:
        """``(N, 3, H, W)`` RGB in 0..1 in and out at this magnification, with the ensemble if there is one; no tiles."""
        return self._steps(self.program(scale))

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of :class:`drct.UpscaleOptions` that are this upscaler's own, as they were asked for."""
        return {**self._asked, **{name: getattr(self, name) for name in ("tile", "overlap", "ensemble", "alpha")}}

    @property
    def scales(self) -> tuple[int, ...]:
        """Magnifications of the networks at hand, smallest first."""
        return tuple(sorted(self._networks))

    @property
    def default_scale(self) -> int:
        """The scale that is used when none is asked for: 4, or that of the one network."""
        return DEFAULT_SCALE if DEFAULT_SCALE in self._networks else self.scales[-1]

    def name(self, scale: int) -> str:
        """Name or file of the network with this magnification."""
        return self._held(scale)[0]

    def _held(self, scale: int) -> tuple[str, Path | Loaded]:
        try:
            return self._networks[scale]
        except (KeyError, TypeError):
            here = ", ".join(map(str, self.scales))
            raise OptionError(f"scale is {scale!r}, but there are networks for {here} times here") from None

    def digest(self, scale: int) -> str:
        """Hash of the weights of the network with this magnification: equal weights give equal results, whatever their file."""
        name, held = self._held(scale)
        if scale not in self._digests:
            if not isinstance(held, Loaded):
                held = Loaded(load_network(held, notices=self.notices))
                self._networks[scale] = (name, held)
            self._digests[scale] = _digest(held.network)
        return self._digests[scale]

    def scales_for(
        self, rows: int, columns: int, *, scale: float | None = None, width: int | None = None, height: int | None = None
    ) -> tuple[int, ...]:
        """Magnifications of the networks that an image goes through, in order; arguments and errors as :meth:`upscale`."""
        if not all(is_whole(side) and side >= 1 for side in (rows, columns)):
            raise OptionError(f"an image of {columns!r} x {rows!r} pixels has none: whole numbers from 1 on are needed")
        rows, columns = int(rows), int(columns)  # the narrow numbers of numpy overflow
        size = self._result_size(rows, columns, scale, width, height)
        return tuple(self._passes(max(size[0] / rows, size[1] / columns)))

    def _result_size(self, rows: int, columns: int, scale: float | None, width: int | None, height: int | None) -> tuple[int, int]:
        if scale is not None and (width is not None or height is not None):
            raise OptionError("scale does not go with width or height: give one or the other")
        return target_size(rows, columns, self.default_scale if scale is None else scale, width, height)

    def tile_limit(self, scale: int) -> int | None:
        """The largest tile that ``tile="auto"`` uses at this magnification; None if only the device's size limits it.

        If :meth:`fix_tiles` was not called before, the memory that is free now decides.
        """
        self._held(scale)
        limit = self._largest_tile.get(scale)
        if self.tile != "auto" or scale in self._fixed_tiles:
            return limit
        program = self.program(scale)
        free = memory.free_memory(self.device)
        side = limit
        if side is None:
            # an image just small enough not to be cut is the most that is ever computed at once
            side = memory.largest_tile(program)
            if memory.need(program, None, side, math.ceil(memory.WHOLE * side)) <= free:
                return None
        while memory.need(program, side, side, side) > free:
            smaller = self._smaller(program, side, side, side)
            if smaller is None:
                break
            side = smaller
        return side

    def fix_tiles(self, scale: int, limit: int | None) -> None:
        """From now on choose tiles up to ``limit`` without regard to the memory that is free; only where it runs out, smaller ones.

        So what else runs on the machine does not decide about the bytes of results.
        """
        self._fixed_tiles.add(scale)
        if limit is None:
            self._largest_tile.pop(scale, None)
        else:
            self._largest_tile[scale] = limit

    @contextlib.contextmanager
    def keeping_tiles(self) -> Iterator[None]:
        """What :meth:`fix_tiles` decides inside does not hold after it, or after the last one where several are inside at once."""
        if not self._inside:
            self._before = set(self._fixed_tiles), dict(self._largest_tile)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                fixed, largest = self._before
                for scale in self._fixed_tiles - fixed:
                    # in place, since upscalers that one chooses from share them
                    self._fixed_tiles.discard(scale)
                    self._largest_tile.pop(scale, None)
                    if scale in largest:
                        self._largest_tile[scale] = largest[scale]

    def __call__(
        self, image: np.ndarray, *, scale: float | None = None, width: int | None = None, height: int | None = None
    ) -> np.ndarray:
        """Upscale an image; as :meth:`upscale`, but only its pixels are returned."""
        return self.upscale(image, scale=scale, width=width, height=height).pixels

    def upscale(
        self,
        image: np.ndarray,
        *,
        scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        progress: Progress | None = None,
        plans: Plans | None = None,
    ) -> Upscaled:
        """Upscale an image.

        Args:
            image: RGB ``(H, W, 3)`` or grey ``(H, W)`` or ``(H, W, 1)``; uint8 0..255, uint16 0..65535, or float32, usually
                0..1, in any order of bytes. Floats beyond are brought to 0..1 linearly for the network and back again after it.
            scale: any number in (0, 16]; default is the network's own. Sides are rounded to whole pixels.
            width, height: exact size of the result instead of a scale; with one of them the other follows.
            progress: called with the finished part of the work.
            plans: tile plans to use again and to add to.

        Returns:
            The result in the type and number of dimensions of ``image``, in the machine's order of bytes; float results are not
            clipped. If the wanted size is not the networks' own, the network goes first and one bicubic resize (antialiased when it
            shrinks) follows.

        Raises:
            OptionError: scale out of range, or options that do not go together.
            ImageError: the array is not an image.
            OutOfMemoryError: even the smallest tile does not fit, or the result does not.
        """
        check_image(image)
        pixels = native(image[:, :, None] if image.ndim == 2 else image)
        with shielded(progress or nothing_told) as tell:
            result = self._within_range(pixels, scale, width, height, _range(pixels), tell, plans)
        return dataclasses.replace(result, pixels=result.pixels[:, :, 0]) if image.ndim == 2 else result

    def _within_range(
        self,
        pixels: np.ndarray,
        scale: float | None,
        width: int | None,
        height: int | None,
        values: tuple[float, float],
        progress: Progress | None,
        plans: Plans | None,
    ) -> Upscaled:
        """Upscale ``(H, W, C)`` whose floats are normalized by a lowest value and a span."""
        rows, columns = pixels.shape[:2]
        size = self._result_size(rows, columns, scale, width, height)
        low, span = values
        result, passes, notices = self._to_size(_normalized(pixels, values), size, progress, plans)
        if (low, span) != (0.0, 1.0):
            result = result * np.float32(span) + np.float32(low)
        return Upscaled(result, tuple(passes), tuple(notices))

    def picture(
        self,
        picture: Picture,
        *,
        scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        progress: Progress | None = None,
        plans: Plans | None = None,
    ) -> UpscaledPicture:
        """Upscale a picture: grey stays grey, alpha is upscaled too, profiles and EXIF are kept.

        The resolution grows with the size, so that a print stays as large as it was. Arguments and errors as :meth:`upscale`.
        """
        check_picture(picture)
        pixels, alpha = picture.pixels, picture.alpha
        values = _range(pixels, alpha)
        if alpha is not None:
            pixels = bleed(pixels, alpha)
            alpha = opacity(alpha)
        # Alpha costs what a grey image costs, which is what a colour image costs.
        by_network = alpha is not None and self.alpha == "network" and not _constant(alpha)
        parts = 2 if by_network else 1
        with shielded(_part(progress, 0, parts) or nothing_told) as tell:
            colours = self._within_range(pixels, scale, width, height, values, tell, plans)
        passes, notices = list(colours.passes), list(colours.notices)
        size = colours.pixels.shape[:2]
        new_alpha: np.ndarray | None = None
        if alpha is not None and _constant(alpha):
            new_alpha = np.full(size, alpha.flat[0], alpha.dtype)
        elif alpha is not None and by_network:
            upscaled = self.upscale(alpha, width=size[1], height=size[0], progress=_part(progress, 1, parts), plans=plans)
            passes += upscaled.passes
            notices += [n for n in upscaled.notices if n not in notices]
            new_alpha = upscaled.pixels
        elif alpha is not None:
            new_alpha = resize(alpha, size=size)
        if new_alpha is not None and new_alpha.dtype == np.float32:
            new_alpha = new_alpha.clip(0, 1)
        resolution = picture.resolution
        if resolution is not None:
            resolution = (resolution[0] * size[1] / picture.width, resolution[1] * size[0] / picture.height)
        larger = dataclasses.replace(picture, pixels=colours.pixels, alpha=new_alpha, resolution=resolution, notices=[])
        return UpscaledPicture(larger, tuple(passes), tuple(notices))

    chooses = False  # whether pictures must be looked at to know the networks for them

    def suited(self, picture: Picture) -> tuple[Upscaler, str]:
        """The upscaler for a picture, and why it was chosen: itself, where there is nothing to choose."""
        return self, ""

    def file(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        format: str | None = None,
        encoding: Encoding | None = None,
        strips: Literal["auto", "on", "off"] = "auto",
        progress: Progress | None = None,
        plans: Plans | None = None,
        **encode: Any,
    ) -> UpscaledFile:
        """Upscale an image file: at once, in strips if it is large, or picture by picture if it is an animation or has pages.

        Args:
            source, target: files; ``target`` is replaced if it exists, and appears complete or not at all.
            format: see :func:`drct.imaging.write`; default by the suffix of ``target``.
            encoding, encode: how the result is encoded, as a whole or by the fields of :class:`drct.imaging.Encoding` such as
                ``quality=90``, ``lossless=True``, ``pyramid=True`` or ``strip=True``.
            strips: whether memory holds strips or the whole; the result is the same. ``"auto"`` follows the memory of the machine.

        The other arguments and the errors are those of :meth:`upscale`; besides:

        Raises:
            ImageError: a file cannot be read or written; the message names it.
            OptionError: besides, an unknown way to encode or ``strips``, no names of files, or ``target`` is ``source``.
        """
        if encoding is not None and encode:
            raise OptionError(f"encoding says how to encode, and so does {next(iter(encode))}: give one of them")
        known = [field.name for field in dataclasses.fields(Encoding)]
        for name in encode:
            if name not in known:
                raise OptionError(f"option '{name}' is unknown{did_you_mean(name, known)}")
        if not isinstance(encoding, Encoding | None):
            raise OptionError(f"encoding is a {type(encoding).__name__}, but must be a drct.imaging.Encoding")
        if not isinstance(format, str | None):
            raise OptionError(f"format is {format!r:.80}, but must be the name of a format")
        encoding = encoding or Encoding(**encode)
        sides = {"scale": scale, "width": width, "height": height}
        files = _file("source", source), _file("target", target)
        with shielded(progress or nothing_told) as tell:
            return upscale_file(self, *files, sides, format, encoding, strips=strips, progress=tell, plans=plans)

    def compare_whole(
        self,
        image: np.ndarray | Picture,
        *,
        scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> tuple[float, float]:
        """Mean and largest absolute difference between the tiled and the whole result of the first network, in values 0..1.

        Needs the memory of the whole image. Arguments and errors are those of :meth:`upscale` and :meth:`picture`.
        """
        picture = image if isinstance(image, Picture) else Picture(image)
        check_picture(picture)
        pixels = picture.pixels if picture.alpha is None else bleed(picture.pixels, picture.alpha)
        pixels = _normalized(pixels, _range(picture.pixels, picture.alpha))
        first = self.scales_for(*pixels.shape[:2], scale=scale, width=width, height=height)[0]
        program = self.program(first)
        tiled, _ = self._run(pixels, first, np.dtype(np.float32), None, [], None)
        plan = plan_tiles(*pixels.shape[:2], tile=None, pad_multiple=program.pad_multiple)
        (whole,) = upscale_strips(self._steps(program), pixels, plan, scale=first, dtype=np.float32)
        difference = np.abs(whole - tiled)
        return float(difference.mean(dtype=np.float64)), float(difference.max())

    def _to_size(
        self, pixels: np.ndarray, size: tuple[int, int], progress: Progress | None, plans: Plans | None
    ) -> tuple[np.ndarray, list[Pass], list[str]]:
        """All passes and the resize that lead from an image ``(H, W, C)`` to a size."""
        height, width = pixels.shape[:2]
        scales = self._passes(max(size[0] / height, size[1] / width))
        # Work grows with the area that each pass starts from.
        work = [math.prod(scales[:i]) ** 2 for i in range(len(scales))]
        dtype = pixels.dtype
        passes: list[Pass] = []
        notices: list[str] = []
        for i, scale in enumerate(scales):
            last = i == len(scales) - 1
            exact = last and size == (pixels.shape[0] * scale, pixels.shape[1] * scale)
            # 16 bits between the steps, so that an 8-bit image is rounded once
            step_dtype = dtype if exact or dtype == np.float32 else np.dtype(np.uint16)
            share = _part(progress, sum(work[:i]), sum(work), work[i])
            pixels, plan = self._run(pixels, scale, step_dtype, share, notices, plans)
            passes.append(Pass(self.name(scale), scale, plan))
        if pixels.shape[:2] != size:
            pixels = resize(pixels, size=size)
        return _to_dtype(pixels, dtype), passes, notices

    def _passes(self, factor: float) -> list[int]:
        """Scales of the networks that together reach a factor: as few as possible, then the smallest product, small ones first."""
        products = {scale: [scale] for scale in self.scales}
        while max(products) * STRETCH < factor:
            longer = {p * scale: sorted([*scales, scale]) for p, scales in products.items() for scale in self.scales}
            if max(longer) == max(products):
                raise OptionError(f"a network of scale 1 cannot enlarge an image {factor:g} times")
            products = longer
        return products[min(product for product in products if product * STRETCH >= factor)]

    def _run(
        self,
        pixels: np.ndarray,
        scale: int,
        dtype: np.dtype[Any],
        progress: Progress | None,
        notices: list[str],
        plans: Plans | None,
    ) -> tuple[np.ndarray, TilePlan]:
        """One pass; with ``tile="auto"`` again with smaller tiles as long as memory runs out."""
        program = self.program(scale)
        height, width, channels = pixels.shape
        shape = (height * scale, width * scale, channels)
        _check_room(shape, dtype)
        result = np.empty(shape, dtype)
        plan, tile = self._plan(program, height, width, notices, plans)
        while True:
            try:
                self._fill(result, program, pixels, plan, progress)
                return result, plan
            except (OutOfMemoryError, torch.OutOfMemoryError, MemoryError) as error:
                smaller = self._smaller(program, tile, height, width)
                if smaller is None:
                    raise _out_of_memory(tile, height, width) from error
            # outside of the handler, whose exception would keep the tensors alive
            notices.append(f"memory ran out with {_tile_name(tile)}: went on with tiles of {smaller}")
            tile = smaller
            self.use_smaller_tiles(scale, smaller)
            plan = self._cut(program, height, width, tile)
            if plans is not None:
                plans.choose(plan)

    def use_smaller_tiles(self, scale: int, tile: int) -> None:
        """Memory ran out at this magnification: from now on take tiles of this size."""
        self._largest_tile[scale] = tile
        for program in self._programs.values():
            program.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _plan(
        self, program: engine.Program, height: int, width: int, notices: list[str], plans: Plans | None
    ) -> tuple[TilePlan, int | None]:
        """How the image of the next pass is cut, and the size of tiles that it was cut for."""
        earlier = None if plans is None else plans.next(height, width)
        if earlier is not None:
            return earlier, None if earlier.whole else max(earlier.tile_height, earlier.tile_width)
        tile = self._choose_tile(program, program.scale, height, width, notices)
        plan = self._cut(program, height, width, tile)
        if plans is not None:
            plans.choose(plan)
        return plan, tile

    def _cut(self, program: engine.Program, height: int, width: int, tile: int | None) -> TilePlan:
        return plan_tiles(
            height,
            width,
            tile=tile,
            pad_multiple=program.pad_multiple,
            overlap=self.overlap,
            batch=memory.choose_batch(program, tile),
            most_rows=memory.strip_rows(width, program.scale) if self.tile == "auto" else None,
        )

    def stages(
        self, source: Colours | Alpha, size: tuple[int, int], progress: Progress | None = None, plans: Plans | None = None
    ) -> Stages:
        """Upscale an image that comes and goes by rows, to the same values as :meth:`upscale`.

        Args:
            source: the image, with floats within 0..1.
            size: height and width of the result.
            progress, plans: as for :meth:`upscale`.

        Returns:
            What gives the strips of the result. Memory that runs out on the way ends it with :class:`TilesTooLarge`: then all must
            be begun again.
        """
        height, width, channels = source.shape
        scales = self._passes(max(size[0] / height, size[1] / width))
        shares = Shares(progress, [math.prod(scales[:i]) ** 2 for i in range(len(scales))])
        passes: list[Pass] = []
        notices: list[str] = []
        image: Source = source
        strips: Iterator[np.ndarray] = iter(())
        for i, scale in enumerate(scales):
            program = self.program(scale)
            exact = i == len(scales) - 1 and size == (height * scale, width * scale)
            dtype = source.dtype if exact or source.dtype == np.float32 else np.dtype(np.uint16)
            plan, tile = self._plan(program, height, width, notices, plans)
            passes.append(Pass(self.name(scale), scale, plan))
            strips = self._strips(program, image, plan, tile, dtype, shares.part(i))
            height, width = height * scale, width * scale
            image = Rows(strips, (height, width, channels))
        if size != (height, width):
            strips = resize_rows(image, size)
        return Stages((to_depth(strip, source.dtype.name) for strip in strips), tuple(passes), tuple(notices))

    def _strips(
        self,
        program: engine.Program,
        image: Source,
        plan: TilePlan,
        tile: int | None,
        dtype: np.dtype[Any],
        progress: Progress | None,
    ) -> Iterator[np.ndarray]:
        try:
            yield from upscale_strips(
                self._steps(program), image, plan, scale=program.scale, dtype=dtype, on_tiles=_counting(plan, progress)
            )
        except (OutOfMemoryError, torch.OutOfMemoryError, MemoryError) as error:
            smaller = self._smaller(program, tile, plan.height, plan.width)
            if smaller is None:
                raise _out_of_memory(tile, plan.height, plan.width) from error
            notice = f"memory ran out with {_tile_name(tile)}: went on with tiles of {smaller}"
        else:
            return
        raise TilesTooLarge(program.scale, smaller, notice)

    def _fill(self, result: np.ndarray, program: engine.Program, pixels: Source, plan: TilePlan, progress: Progress | None) -> None:
        count = _counting(plan, progress)
        row = 0
        for strip in upscale_strips(self._steps(program), pixels, plan, scale=program.scale, dtype=result.dtype, on_tiles=count):
            result[row : row + len(strip)] = strip
            row += len(strip)

    def _steps(self, program: engine.Program) -> Program:
        """The program as tiles need it: RGB in and out, ensemble included."""
        run: Program = (
            program if program.in_chans == 3 else lambda x: program(x.flatten(0, 1)[:, None]).unflatten(0, x.shape[:2])[:, :, 0]
        )
        return self_ensemble(run) if self.ensemble else run

    def _choose_tile(self, program: engine.Program, scale: int, height: int, width: int, notices: list[str]) -> int | None:
        if self.tile == "off":
            return None
        if self.tile != "auto":
            return int(self.tile)
        tile = memory.choose_tile(program, height, width)
        known = self._largest_tile.get(scale)
        if known is not None and (tile is None or tile > known) and max(height, width) > known:
            tile = known
        if scale in self._fixed_tiles:
            return tile
        while memory.need(program, tile, height, width) > memory.free_memory(self.device):
            smaller = self._smaller(program, tile, height, width)
            if smaller is None:
                break
            notices.append(f"too little memory is free for {_tile_name(tile)}: tiles of {smaller} are used")
            tile = smaller
        return tile

    def _smaller(self, program: engine.Program, tile: int | None, height: int, width: int) -> int | None:
        """The next smaller size of the ladder that makes a difference for this image, or None."""
        if self.tile != "auto":
            return None
        bound = max(height, width) if tile is None else min(tile, max(height, width))
        return max((size for size in ladder(program.pad_multiple) if size < bound), default=None)


def _counting(plan: TilePlan, progress: Progress | None) -> Callable[[int], None]:
    """What hears of finished tiles and tells the finished part of all."""
    done = 0

    def count(tiles: int) -> None:
        nonlocal done
        done += tiles
        if progress is not None:
            progress(done / plan.tiles)

    return count


class Loaded:
    """A network in memory that goes to another process as bytes: torch would share each of its tensors by an open file."""

    def __init__(self, network: SuperResolutionNetwork) -> None:
        self.network = network

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded, (pickle.dumps(self.network),)


def _loaded(data: bytes) -> Loaded:
    return Loaded(pickle.loads(data))


def _digest(network: SuperResolutionNetwork) -> str:
    """sha256 over names, types, shapes and values of all weights, and over what else decides about the network's values."""
    digest = hashlib.sha256(repr((network.architecture, network.options)).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def networks_here(name: str) -> dict[int, tuple[str, Any]]:
    """By magnification, names and files of the models ``NAME-x2``, ``NAME-x3``, ... that lie on this machine."""
    return {scale: (card.name, card.path) for scale, card in family(name).items() if card.path is not None}


def _file(argument: str, path: object) -> Path:
    """A path that a caller gave for a file."""
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise OptionError(f"{argument} is {path!r:.80}, but must be the name of a file")
    if "\0" in name:
        raise OptionError(f"{argument} is {name!r}, but no file name holds a NUL character")
    return Path(name)


def check_picture(picture: Picture) -> None:
    """Raise ImageError unless :meth:`Upscaler.picture` takes the object."""
    if not isinstance(picture, Picture):
        raise ImageError(f"the picture is a {type(picture).__name__}, not a drct.imaging.Picture: use upscale for arrays")
    check_image(picture.pixels)
    alpha, shape = picture.alpha, picture.pixels.shape[:2]
    if alpha is None:
        return
    if not isinstance(alpha, np.ndarray) or alpha.shape != shape or alpha.dtype != picture.pixels.dtype:
        found = f"{alpha.dtype} of shape {alpha.shape}" if isinstance(alpha, np.ndarray) else f"a {type(alpha).__name__}"
        raise ImageError(
            f"the picture's alpha is {found}, but {picture.pixels.dtype} of shape {shape} is needed, as its pixels are"
        )


def check_image(image: np.ndarray) -> None:
    """Raise ImageError unless :meth:`Upscaler.upscale` takes the array."""
    if not isinstance(image, np.ndarray):
        raise ImageError(f"the image is a {type(image).__name__}, not a numpy array")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or 0 in image.shape:
        raise ImageError(f"an array of shape {image.shape} is not an image: (H, W, 3) or (H, W) is needed, with at least one pixel")
    dtype = image.dtype.newbyteorder("=")  # the other order of bytes is as good
    if dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(f"pixels of type {image.dtype} are not supported: use uint8, uint16 or float32")
    if dtype == np.float32 and not np.isfinite((image.min(), image.max())).all():
        raise ImageError("the pixels hold NaN or infinite values")


def _range(pixels: np.ndarray, alpha: np.ndarray | None = None) -> tuple[float, float]:
    """Lowest value and span that floats beyond 0..1 are normalized by; (0, 1) for all other images."""
    if pixels.dtype != np.float32:
        return 0.0, 1.0
    low, high = visible_range(pixels, alpha)
    low, high = min(low, 0.0), max(high, 1.0)
    if high - low > float(np.finfo(np.float32).max):
        raise ImageError(f"the pixels reach from {low:.3g} to {high:.3g}, which is too far for float32")
    return low, high - low


def _normalized(pixels: np.ndarray, values: tuple[float, float]) -> np.ndarray:
    """Pixels less a lowest value, divided by a span."""
    low, span = values
    return pixels if (low, span) == (0.0, 1.0) else (pixels - np.float32(low)) / np.float32(span)


def _constant(plane: np.ndarray) -> bool:
    return bool((plane == plane.flat[0]).all())


def _to_dtype(pixels: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Integers of one depth in another, by strips, since there are floats in between."""
    if pixels.dtype == dtype:
        return pixels
    result = np.empty(pixels.shape, dtype)
    rows = max(1, 2**20 // (pixels.shape[1] * pixels.shape[2]))
    for row in range(0, len(pixels), rows):
        result[row : row + rows] = to_depth(pixels[row : row + rows], dtype.name)
    return result


def _check_room(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
    need, have = math.prod(shape) * dtype.itemsize, memory.system_memory()
    if need > have:
        raise OutOfMemoryError(
            f"the result of {shape[1]} x {shape[0]} pixels needs {need / 2**30:.1f} GiB, "
            f"but this machine has {have / 2**30:.1f} GiB: use a smaller scale"
        )


def _out_of_memory(tile: int | None, height: int, width: int) -> OutOfMemoryError:
    if tile is None:
        return OutOfMemoryError(f"not enough memory for {width} x {height} pixels at once: use --tile auto")
    return OutOfMemoryError(f"not enough memory for tiles of {tile} pixels: use --tile auto, a smaller tile or a smaller model")


def _tile_name(tile: int | None) -> str:
    return "the whole image" if tile is None else f"tiles of {tile}"


def _part(progress: Progress | None, before: float, total: float, size: float = 1) -> Progress | None:
    """Progress of a part of the work: ``size`` of ``total``, after ``before``."""
    if progress is None:
        return None
    return lambda done: progress((before + size * done) / total)
