"""Videos made larger frame by frame, with all that they carry (needs the extra ``video``: PyAV)."""

from drct.upscaling.video.clips import ClipResult, Done, upscale_clip
from drct.upscaling.video.encoding import CODECS, CONTAINERS, is_video_file, video_suffix
from drct.upscaling.video.source import Clip

__all__ = ["CODECS", "CONTAINERS", "Clip", "ClipResult", "Done", "is_video_file", "upscale_clip", "video_suffix"]
