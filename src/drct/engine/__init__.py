"""Turn a trained network into a fast program for one device: same values, less work.

``program = drct.engine.compile(network, device="auto", precision="auto")`` and then ``program(x)``;
``program.describe()`` tells which kernels run, and why.
"""

from drct.engine.compiler import compile
from drct.engine.devices import PRECISIONS, resolve_device, resolve_precision
from drct.engine.program import Program

__all__ = ["PRECISIONS", "Program", "compile", "resolve_device", "resolve_precision"]
