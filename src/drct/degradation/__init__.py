"""How good images become bad ones: the second-order degradation of Real-ESRGAN, and what training on it needs."""

from drct.degradation.filters import filter2d, usm_sharpen
from drct.degradation.jpeg import jpeg
from drct.degradation.options import PRESETS, DegradationOptions
from drct.degradation.pool import PairPool
from drct.degradation.process import Step, degrade
from drct.degradation.samples import Sample, degrade_picture, sample_sheet

__all__ = [
    "PRESETS",
    "DegradationOptions",
    "PairPool",
    "Sample",
    "Step",
    "degrade",
    "degrade_picture",
    "filter2d",
    "jpeg",
    "sample_sheet",
    "usm_sharpen",
]
