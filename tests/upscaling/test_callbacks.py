"""What callbacks raise belongs to those who gave them, also where one block lies in another and where memory runs out."""

from __future__ import annotations

import contextlib
import functools
import gc
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from upscaling_helpers import smooth_image, tiny_network

import drct
from drct.imaging import Picture
from drct.upscaling.callbacks import shielded

ERRORS = [PermissionError(13, "mine"), drct.OutOfMemoryError("mine"), MemoryError("mine")]


def raising(error: BaseException) -> Callable[[float], None]:
    def broken(done: float) -> None:
        raise error

    return broken


def test_an_error_comes_out_of_the_block_of_its_own_callback() -> None:
    passed = []
    error = ValueError("mine")

    def nested() -> None:
        with shielded(raising(error)) as outer:
            with shielded(outer) as inner:
                try:
                    inner(0.5)
                except Exception:  # as the handlers of files do
                    passed.append("a handler")
            passed.append("the inner block")

    with pytest.raises(ValueError, match="mine") as raised:
        nested()
    assert raised.value is error
    assert not passed


def test_what_is_no_exception_and_what_others_raise_passes() -> None:
    with pytest.raises(KeyboardInterrupt), shielded(raising(KeyboardInterrupt())) as tell:
        tell(1.0)
    with pytest.raises(OSError, match="other"), shielded(raising(ValueError())):
        raise OSError("other")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("alpha", [False, True])
def test_no_error_of_a_callback_is_taken_for_full_memory(error: Exception, alpha: bool) -> None:
    """Full memory would make the tiles smaller and call again."""
    calls = []

    def broken(done: float) -> None:
        calls.append(done)
        if done > 0.4:
            raise error

    upscaler = drct.Upscaler(tiny_network(), device="cpu", tile=32)
    image = smooth_image(40, 30)
    run = (
        functools.partial(upscaler.picture, Picture(image, image[:, :, 0])) if alpha else functools.partial(upscaler.upscale, image)
    )
    with pytest.raises(type(error)) as raised:
        run(progress=broken)
    assert raised.value is error
    assert calls == sorted(set(calls))
    assert np.sum(np.array(calls) > 0.4) == 1


class Cancelled(Exception):
    pass


def test_work_that_is_given_up_leaves_nothing_in_memory() -> None:
    upscaler = drct.Upscaler(tiny_network(), device="cpu", tile=32)
    image = smooth_image(400, 300)
    upscaler(image[:40, :40])

    def cancel(done: float) -> None:
        raise Cancelled

    collected = gc.isenabled()
    gc.disable()
    tracemalloc.start()
    try:
        held = []
        for _ in range(4):
            with contextlib.suppress(Cancelled):
                upscaler.upscale(image, progress=cancel)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        if collected:
            gc.enable()
    assert held[3] - held[0] < image.nbytes  # three results are much larger than that


def test_an_error_keeps_its_own_history() -> None:
    def broken(done: float) -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise Cancelled from None

    def chained(done: float) -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise Cancelled from error

    for callback in (broken, chained):
        with pytest.raises(Cancelled) as caught, shielded(callback) as tell:
            tell(1.0)
        assert isinstance(caught.value.__context__, KeyError)
        assert (caught.value.__cause__ is None) == (callback is broken)


@pytest.mark.parametrize("error", [StopIteration(), GeneratorExit()])
def test_errors_that_mean_something_to_generators(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, shielded(raising(error)) as tell:
        tell(1.0)
    assert caught.value is error
