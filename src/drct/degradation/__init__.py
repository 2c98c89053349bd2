"""How good images become bad ones: the second-order degradation of Real-ESRGAN, and what training on it needs."""

from drct.degradation.filters import filter2d, usm_sharpen
from drct.degradation.jpeg import jpeg
from drct.degradation.options import PRESETS, DegradationOptions
from drct.degradation.pool import PairPool
from drct.degradation.process import degrade

__all__ = ["PRESETS", "DegradationOptions", "PairPool", "degrade", "filter2d", "jpeg", "usm_sharpen"]
