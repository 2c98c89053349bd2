"""Metrics, benchmark suites and the tables and pages that show them."""

from drct.evaluation.metrics import ms_ssim, psnr, quantize, ssim
from drct.evaluation.no_reference import niqe
from drct.evaluation.perceptual import dists, lpips

__all__ = ["dists", "lpips", "ms_ssim", "niqe", "psnr", "quantize", "ssim"]
