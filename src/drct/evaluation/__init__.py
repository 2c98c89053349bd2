"""Metrics, benchmark suites and the tables and pages that show them."""

from drct.evaluation.metrics import ms_ssim, psnr, quantize, ssim

__all__ = ["ms_ssim", "psnr", "quantize", "ssim"]
