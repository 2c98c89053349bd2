"""``--model auto``: the network that suits the picture, chosen by looking at it.

Clean pictures go through a network that was trained for fidelity. Those that are compressed, noisy or blurred go through one that
was trained on such pictures, if there is one on this machine; the other would sharpen the dirt.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from typing import Any, NamedTuple

import numpy as np

from drct.degradation.condition import DEFECTS, POOR_JPEG, inspect
from drct.errors import OptionError
from drct.imaging import Picture
from drct.networks import SuperResolutionNetwork
from drct.upscaling.options import AUTO, FIDELITY_MODEL, REAL_MODEL, UpscaleOptions
from drct.upscaling.passes import Upscaled, UpscaledPicture, is_real
from drct.upscaling.upscaler import STRETCH, Loaded, Upscaler, check_image, check_picture, networks_here
from drct.weights import load_network


class Choice(NamedTuple):
    """What was chosen for a picture.

    Attributes:
        upscaler: the one that suits it.
        words: which network and why, in one line: ``"drct-real-light: JPEG quality 43, blocks"``.
    """

    upscaler: Upscaler
    words: str


class AutoUpscaler(Upscaler):
    """An upscaler that looks at each picture first and takes the network that suits it.

    The network for degraded pictures exists for some magnifications only (x4). It goes first in any case: smaller results are made
    from its own by the resize, for larger ones the networks for clean pictures go on.

    Args:
        strength: no look: all pictures go through a network between the two, whose weights are mixed (network interpolation,
            ESRGAN, arXiv 1809.00219, section 3.4): 0 is the one for clean pictures, 1 the one for degraded ones.
        settings: as for :class:`Upscaler`, without ``model``.

    Raises:
        OptionError: the strength is no number in 0..1, or there are no two networks to mix.
        CheckpointError, ModelNotFoundError, DeviceError: as for :class:`Upscaler`.
    """

    chooses = True

    def __init__(self, *, strength: float | None = None, **settings: Any) -> None:
        if strength is not None:
            if not is_real(strength) or not 0 <= strength <= 1:
                raise OptionError(f"strength is {strength!r}, but must be a number within 0 to 1")
            strength = float(strength)  # a plain number, since it is written as JSON
        super().__init__(FIDELITY_MODEL, **settings)
        self.strength = strength
        self._asked |= {"model": AUTO, "strength": strength}
        self._real = _real_networks(self, strength)
        # Two sets of networks with the same settings. Their tile limits are shared: the networks are of one architecture.
        self._for_clean = _with(self, Upscaler, {})
        self._for_degraded = None if self._real is None else _with(self, _RealFirst, self._real)

    def suited(self, picture: Picture) -> Choice:
        """The upscaler that suits a picture. A JPEG file at ``picture.path`` is asked for its quality, too."""
        clean, degraded = self._for_clean, self._for_degraded
        if self.strength is not None and degraded is not None:
            return Choice(degraded, f"{FIDELITY_MODEL} with {self.strength:g} of {REAL_MODEL}, as asked for")
        condition = inspect(picture)
        if not condition.degraded:
            return Choice(clean, f"{FIDELITY_MODEL}: {condition}")
        if degraded is None:
            return Choice(clean, f"{FIDELITY_MODEL}: {condition}, but there is no {REAL_MODEL} here")
        return Choice(degraded, f"{REAL_MODEL}: {condition}")

    def upscale(self, image: np.ndarray, **how: Any) -> Upscaled:
        """As :meth:`Upscaler.upscale`, with the network that suits the image."""
        check_image(image)
        return self.suited(Picture(image))[0].upscale(image, **how)

    def picture(self, picture: Picture, **how: Any) -> UpscaledPicture:
        """As :meth:`Upscaler.picture`, with the network that suits the picture; ``choice`` of the result tells which and why."""
        check_picture(picture)
        suited, choice = self.suited(picture)
        return dataclasses.replace(suited.picture(picture, **how), choice=choice)

    def compare_whole(self, image: np.ndarray | Picture, **sides: Any) -> tuple[float, float]:
        """As :meth:`Upscaler.compare_whole`, with the network that suits the image."""
        picture = image if isinstance(image, Picture) else Picture(image)
        return self.suited(picture)[0].compare_whole(picture, **sides)

    def scales_for(
        self, rows: int, columns: int, *, scale: float | None = None, width: int | None = None, height: int | None = None
    ) -> tuple[int, ...]:
        """Magnifications of all networks that an image of this size may go through, whatever it looks like."""
        ways = [way.scales_for(rows, columns, scale=scale, width=width, height=height) for way in self._ways()]
        return tuple(dict.fromkeys(scale for way in ways for scale in way))

    def digest(self, scale: int) -> str:
        """Hash of the weights of all networks with this magnification, and of how is chosen among them."""
        ways = [way.digest(scale) for way in self._ways() if scale in way.scales]
        return hashlib.sha256(repr((ways, DEFECTS, POOR_JPEG)).encode()).hexdigest()

    def _ways(self) -> list[Upscaler]:
        if self._for_degraded is None:
            return [self._for_clean]
        return [self._for_degraded] if self.strength is not None else [self._for_clean, self._for_degraded]


class _RealFirst(Upscaler):
    """Networks of which those for degraded pictures go first; what they lack in magnification, the others add."""

    first: tuple[int, ...] = ()

    def _passes(self, factor: float) -> list[int]:
        start = min((scale for scale in self.first if scale * STRETCH >= factor), default=max(self.first))
        rest = factor / start
        if rest <= STRETCH:
            return [start]
        others = [scale for scale in self.scales if scale not in self.first and scale > 1] or list(self.first)
        passes = [start]
        while math.prod(passes[1:]) * STRETCH < rest:
            missing = rest / math.prod(passes[1:])
            passes.append(min((scale for scale in others if scale * STRETCH >= missing), default=max(others)))
        return passes


def create_upscaler(options: UpscaleOptions, device: str) -> Upscaler:
    """The upscaler that options ask for, on a device; errors as for :class:`AutoUpscaler`."""
    settings = {name: getattr(options, name) for name in ("precision", "tile", "overlap", "ensemble", "alpha")}
    if str(options.model) == AUTO:
        return AutoUpscaler(strength=options.strength, device=device, **settings)
    return Upscaler(options.model, device=device, **settings)


def blend(clean: SuperResolutionNetwork, real: SuperResolutionNetwork, strength: float) -> SuperResolutionNetwork:
    """A network whose weights are ``(1 - strength)`` of one and ``strength`` of the other.

    Raises:
        OptionError: the networks are not of the same architecture and sizes.
    """
    mine, other = clean.state_dict(), real.state_dict()
    if clean.scale != real.scale or {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in other.items()}:
        raise OptionError(
            f"strength mixes two networks of the same sizes, but {clean.architecture} x{clean.scale} and "
            f"{real.architecture} x{real.scale} differ: leave out --strength"
        )
    mixed = copy.deepcopy(clean)
    mixed.load_state_dict({name: mine[name].lerp(other[name], strength) for name in mine})
    return mixed.eval()


def _real_networks(upscaler: Upscaler, strength: float | None) -> dict[int, tuple[str, Any]] | None:
    """By magnification, names and files of the networks for degraded pictures, or the mixed ones; None if there are none here."""
    found = networks_here(REAL_MODEL)
    if strength is None:
        return found or None
    mixed: dict[int, tuple[str, Any]] = {}
    for scale in found.keys() & set(upscaler.scales):
        name, path = found[scale]
        network = blend(load_network(upscaler.name(scale)), load_network(path), strength)
        mixed[scale] = (f"{upscaler.name(scale)} with {strength:g} of {name}", Loaded(network))
    if not mixed:
        raise OptionError(f"strength mixes {FIDELITY_MODEL} with {REAL_MODEL}, which is not on this machine: leave out --strength")
    return mixed


def _with(upscaler: Upscaler, kind: type[Upscaler], first: dict[int, tuple[str, Any]]) -> Upscaler:
    """An upscaler with the settings and limits of another; its networks besides those that go first."""
    twin = kind.__new__(kind)
    twin.__dict__.update(upscaler.__dict__)
    if isinstance(twin, _RealFirst):
        twin.first = tuple(first)
        twin._networks = {**upscaler._networks, **first}
        twin._programs, twin._digests = {}, {}
    return twin
