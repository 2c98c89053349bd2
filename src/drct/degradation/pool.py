"""The pool of training pairs: mixes degradations within a batch, which share the draws that are made once per batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drct.degradation.draws import Draws
from drct.errors import OptionError


class PairPool:
    """Keeps pairs of earlier batches and gives out others in their place (Real-ESRGAN, section 3.5).

    Until the pool is full, pairs are kept and given out as they came. From then on it is shuffled each time, and a batch of its
    pairs is swapped against the new one.

    Args:
        size: pairs in the pool; a multiple of the batch size.

    Raises:
        OptionError: an empty pool.
    """

    def __init__(self, size: int = 180) -> None:
        if size < 1:
            raise OptionError(f"queue_size is {size}, but the pool must hold at least one batch")
        self.size = size
        self._lq: Tensor | None = None
        self._gt: Tensor | None = None
        self._filled = 0

    def __len__(self) -> int:
        """Pairs that are kept at present."""
        return self._filled

    def exchange(self, lq: Tensor, gt: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Put a batch in and take one out.

        Args:
            lq, gt: ``(N, C, H, W)`` and ``(N, C', H', W')``, of the same shapes each time.
            generator: for the shuffle.

        Returns:
            A batch of pairs, copies of what the pool held; the arguments themselves are left as they are.

        Raises:
            OptionError: the pool is no multiple of the batch, or the shapes differ from those of earlier batches.
        """
        n = len(lq)
        if len(gt) != n:
            raise OptionError(f"the pool was given {n} low-quality images, but {len(gt)} of ground truth")
        if n == 0 or self.size % n:
            raise OptionError(f"queue_size {self.size} is not a multiple of the batch size {n}")
        if self._lq is None or self._gt is None:
            self._lq, self._gt = (x.new_zeros(self.size, *x.shape[1:]) for x in (lq, gt))
        self._lq, self._gt = _unpacked(self._lq, lq.device), _unpacked(self._gt, gt.device)
        if lq.shape[1:] != self._lq.shape[1:] or gt.shape[1:] != self._gt.shape[1:]:
            raise OptionError(
                f"the pool holds pairs of {tuple(self._lq.shape[1:])} and {tuple(self._gt.shape[1:])}, "
                f"but was given {tuple(lq.shape[1:])} and {tuple(gt.shape[1:])}"
            )
        if self._filled < self.size:
            self._filled -= self._filled % n  # pairs of a stored pool, filled by other batches, that leave no room for whole ones
            end = self._filled + n
            self._lq[self._filled : end], self._gt[self._filled : end] = lq, gt
            self._filled = end
            return lq.clone(), gt.clone()
        # Shuffling the pool and swapping its first pairs is swapping pairs at random places, without moving the rest.
        places = Draws(generator).order(self.size)[:n].to(self._lq.device)
        out = self._lq[places], self._gt[places]
        self._lq[places], self._gt[places] = lq, gt
        return out

    def state_dict(self) -> dict[str, Any]:
        """All that the pool holds: tensors of the pairs, as bytes where they are images of 8 bits, and numbers."""
        return {"size": self.size, "lq": _packed(self._lq, self._filled), "gt": _packed(self._gt, self._filled)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the pairs of :meth:`state_dict`.

        Raises:
            OptionError: the state is that of a pool of another size.
        """
        if state["size"] != self.size:
            raise OptionError(f"the stored pool has room for {state['size']} pairs, but queue_size is {self.size}: use the same")
        # bytes stay bytes until the pool knows its device
        self._lq, self._gt = (_with_room(state[name], self.size) for name in ("lq", "gt"))
        self._filled = 0 if state["lq"] is None else len(state["lq"])


def _packed(x: Tensor | None, filled: int) -> Tensor | None:
    if x is None:
        return None
    x = x[:filled]
    if x.dtype == torch.uint8:  # not used since it was loaded
        return x.cpu().clone()
    levels = (x * 255).round().clamp(0, 255)
    return (levels.to(torch.uint8) if torch.equal(levels / 255, x) else x).cpu().clone()


def _with_room(x: Tensor | None, size: int) -> Tensor | None:
    return None if x is None else torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])


def _unpacked(x: Tensor, device: torch.device) -> Tensor:
    """Divided there where it was packed: CUDA multiplies by 1/255, which is the last bit off for half of all levels."""
    x = x.to(device)
    return x.float() / 255 if x.dtype == torch.uint8 else x
