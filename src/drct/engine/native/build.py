"""Compile the C kernels of this folder on first use, once per machine, and load them.

No compiler at installation time, no binary in the wheel: where a C compiler is at hand the kernels are built in some
seconds and kept in the user's cache; where none is, callers take the plain torch path.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drct.errors import DeviceError, OptionError
from drct.places import cache_folder

FOLDER = Path(__file__).parent
BUILD_SECONDS = 600  # a kernel takes 2 to 7, but many times as long on a machine with other work
# no -ffast-math: rounding by adding a large number must survive the optimizer
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")


def find_compiler() -> str | None:
    """Path of the C compiler that would be used: ``$CC``, else gcc, clang or cc; None when there is none."""
    command = compiler_command()
    return command[0] if command else None


def compiler_command() -> list[str]:
    """The compiler and what ``$CC`` says behind it, as in ``CC="ccache gcc"``; empty when there is none, or no sense in ``$CC``."""
    try:
        commands = [shlex.split(os.environ["CC"])] if os.environ.get("CC", "").strip() else [["gcc"], ["clang"], ["cc"]]
    except ValueError:  # a quote that does not end
        return []
    return next(([path, *rest] for name, *rest in commands if (path := shutil.which(name))), [])


def kernels_folder() -> Path:
    """Where built kernels are kept: ``$DRCT_CACHE/native``, else the platform's cache folder, else one for temporary files.

    The last is for users without a home, or with one that cannot be written or may hold no programs.

    Raises:
        DeviceError: there is no place for them.
    """
    try:
        folder = cache_folder("native")
        if os.environ.get("DRCT_CACHE"):
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK) and not _forbids_programs(folder):
            return folder
    except (OSError, OptionError):
        pass
    return _private_folder()


def _private_folder() -> Path:
    """A folder for temporary files that nobody else can put libraries into."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"drct-native-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise DeviceError(f"native kernels cannot be kept in {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and (status.st_uid != user or status.st_mode & 0o022)):
        raise DeviceError(f"native kernels cannot be kept in {folder}, which others can write to: set DRCT_CACHE")
    return folder


def _forbids_programs(folder: Path) -> bool:
    """Whether nothing there can be loaded, on Linux: of file systems mounted with noexec."""
    return hasattr(os, "ST_NOEXEC") and bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)


def _processor() -> str:
    """What -march=native depends on, so that a shared home folder never hands a binary to another kind of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def load_library(source: str) -> ctypes.CDLL:
    """Build ``source`` (a file name in this folder) if this machine has not yet, and load it.

    Raises:
        DeviceError: kernels are switched off (``DRCT_NATIVE=0``), there is no compiler, or it failed. A program that asked once
            gets the same answer ever after, so that nobody waits for a compiler that fails in every layer.
    """
    outcome = library_or_reason(source)
    if isinstance(outcome, str):
        raise DeviceError(outcome)
    return outcome


@functools.cache
def library_or_reason(source: str) -> ctypes.CDLL | str:
    """The library that :func:`load_library` returns, or what it says instead."""
    try:
        return _load(source)
    except DeviceError as error:
        return str(error)


def reason_against(source: str) -> str | None:
    """None when the kernels of ``source`` can be used here, else the reason why not."""
    outcome = library_or_reason(source)
    return outcome if isinstance(outcome, str) else None


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """To the first number of a tensor."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def plain_floats(*tensors: Tensor | None) -> Iterator[Any]:
    """The tensors as kernels of float32 read them, without gaps.

    Raises:
        ValueError: one is of another type or not on the CPU.
    """
    for tensor in tensors:
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            raise ValueError(f"the kernel takes float32 on the CPU only, not {tensor.dtype} on {tensor.device}")
        yield None if tensor is None else tensor.contiguous()


def run(function: Any, memory: str, *arguments: Any) -> None:
    """Call a kernel that returns whether memory ran out, for which ``memory`` is the message; tensors are passed as pointers."""
    if function(*(pointer(a) if isinstance(a, Tensor) else a for a in arguments)):
        raise MemoryError(memory)


def gradients_of_parameters(found: Iterable[Tensor | None], needed: Iterable[bool]) -> Iterator[Tensor | None]:
    """Those that are needed, laid out as parameters are: parallel training warns of others and copies them."""
    for gradient, wanted in zip(found, needed, strict=True):
        # contiguous() would leave alone the turned single column of a network with one head
        yield gradient.clone(memory_format=torch.contiguous_format) if wanted and gradient is not None else None


def reason_unmeasured(lanes: int) -> str | None:
    """Why a kernel whose vectors hold this many numbers is not preferred to oneDNN; None where it was measured to be faster."""
    return None if lanes in (8, 16) else "measured to be faster on processors with AVX2 or AVX-512 only"


def _load(source: str) -> ctypes.CDLL:
    if os.environ.get("DRCT_NATIVE") == "0":
        raise DeviceError("native kernels are switched off by DRCT_NATIVE=0")
    compiler = compiler_command()
    if not compiler:
        given = os.environ.get("CC", "").strip()
        raise DeviceError(
            f"native kernels need a C compiler: CC is {given!r}, which was not found"
            if given
            else "native kernels need a C compiler (gcc or clang) and none was found"
        )
    try:
        code = [path.read_bytes() for path in (FOLDER / source, *sorted(FOLDER.glob("*.h")))]
    except OSError as error:  # applications may be packed without them, or into one archive
        raise DeviceError(f"native kernels: {error.filename or FOLDER / source} cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(b"\0".join([*code, " ".join(FLAGS).encode(), " ".join(compiler).encode(), _processor().encode()]))
    target = kernels_folder() / f"{Path(source).stem}-{digest.hexdigest()[:16]}.so"
    if not _is_whole(target):  # also where the folder may not be read, which the build then says
        _build(compiler, source, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise DeviceError(f"the native kernel {target} cannot be loaded ({error}): delete it and try again") from error


def _seal(library: Path) -> Path:
    """The file that holds a library's hash."""
    return library.with_suffix(".sha256")


def _is_whole(library: Path) -> bool:
    """Whether a built library is as it was built: one that lost its end, as in a power cut, would end the process when used."""
    try:
        return _seal(library).read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return False


def _build(compiler: list[str], source: str, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            if _forbids_programs(target.parent):
                raise DeviceError(f"native kernels cannot run in {target.parent}, which is mounted noexec: set DRCT_CACHE")
            command = [*compiler, *FLAGS, str(FOLDER / source), "-o", str(built), "-lm"]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=BUILD_SECONDS)
            if reason := _failure(result, built):
                raise DeviceError(f"{compiler[0]} could not build the native kernel {source}: {reason}")
            seal = _seal(built)
            seal.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
            # Another process may build it meanwhile: either file is right. Should the hash then be that of the other one, or the
            # power fail in between, the next process builds again.
            os.replace(built, target)
            os.replace(seal, _seal(target))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"the native kernel {source} could not be built in {target.parent}: {error}") from error


def _failure(result: subprocess.CompletedProcess[str], built: Path) -> str | None:
    """Why a compiler made no library that can be loaded, in one line; None where it did."""
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        end = f"it was ended by signal {-result.returncode}" if result.returncode < 0 else "no message"
        # before the error compilers tell where they came from
        return next((line for line in lines if re.search(r"\berror\b|cannot find|undefined", line)), lines[0] if lines else end)
    if not built.is_file():
        return "it wrote no library"
    try:
        ctypes.CDLL(str(built))
    except OSError as error:
        return f"the library cannot be loaded ({error})"
    return None
