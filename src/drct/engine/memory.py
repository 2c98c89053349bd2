"""Count the memory that a piece of torch code holds at its worst moment."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Context that follows every tensor storage made inside it; ``peak`` is the largest sum of bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive = 0
        self._sizes: dict[int, int] = {}  # of storages that are alive, by address
        self._dead: list[int] = []  # a storage may die at any moment and in any thread, even amid a sum: only noted here

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _is_strided(leaf)}
        result = func(*args, **(kwargs or {}))
        while self._dead:
            self._alive -= self._sizes.pop(self._dead.pop())
        for leaf in tree_leaves(result):
            if _is_strided(leaf) and leaf.untyped_storage()._cdata not in before:
                self._follow(leaf.untyped_storage())
        self.peak = max(self.peak, self._alive)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self._alive += storage.nbytes()
            weakref.finalize(storage, self._dead.append, storage._cdata).atexit = False


def _is_strided(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided
