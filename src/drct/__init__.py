"""Image super-resolution by DRCT, the Dense Residual Connected Transformer (arXiv 2404.00722)."""

__version__ = "0.1.0"
