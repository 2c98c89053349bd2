"""Whether Triton's kernels can be launched here. Importing this needs no triton."""

from __future__ import annotations

import functools
import importlib.util

from drct.engine.native.build import find_compiler


def triton_available() -> str | None:
    """None where kernels of Triton can be launched on the GPU, else the reason."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if find_compiler() is None:
        return "Triton needs a C compiler (gcc or clang) and none was found"
    return _launcher()


@functools.cache
def _launcher() -> str | None:
    """Why Triton cannot build what launches its kernels, which takes the headers of Python and the library of the driver."""
    try:
        from triton.runtime import driver

        driver.active.utils  # noqa: B018 (builds it)
    except Exception as error:  # whatever compilers, linkers and imports raise
        lines = str(error).splitlines() or [""]
        return f"Triton cannot build its launcher ({type(error).__name__}: {lines[0][:200]})"
    return None
