"""The main job: images of any size made larger, one by one or in folders."""

from drct.engine.views import self_ensemble
from drct.upscaling.batch import upscale
from drct.upscaling.choosing import AutoUpscaler
from drct.upscaling.files import UpscaledFile
from drct.upscaling.options import UpscaleOptions
from drct.upscaling.passes import Pass, Upscaled, UpscaledPicture, target_size
from drct.upscaling.results import FileResult, Listener, Report
from drct.upscaling.tiles import TilePlan, plan_tiles, upscale_strips
from drct.upscaling.upscaler import Upscaler
from drct.upscaling.watch import watch_folders

__all__ = [
    "AutoUpscaler",
    "FileResult",
    "Listener",
    "Pass",
    "Report",
    "TilePlan",
    "UpscaleOptions",
    "Upscaled",
    "UpscaledFile",
    "UpscaledPicture",
    "Upscaler",
    "plan_tiles",
    "self_ensemble",
    "target_size",
    "upscale",
    "upscale_strips",
    "watch_folders",
]
