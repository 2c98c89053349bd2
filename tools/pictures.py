"""Make the README's pictures (``docs/pictures``) anew, with the bundled weights of now: ``python tools/pictures.py [NAME...]``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyvips

import drct
from drct.degradation import DegradationOptions, degrade_picture
from drct.imaging import Picture, read, resize, side_by_side, write

ROOT = Path(__file__).resolve().parents[1]
PICTURES, PHOTO = ROOT / "docs" / "pictures", ROOT / "examples" / "photo.png"
WIDTH = 1160  # of figures
SEEDS = (8, 6, 10)  # of the preset "real": mild; compressed; blurred and noisy
EYE = np.s_[45:125, 120:210]  # of the photograph; what is enlarged four times fills a page's width


def explained(folder: Path, *arguments: str) -> pyvips.Image:
    """The figure of ``drct explain``, of the width of a page."""
    figure = folder / "figure.png"
    subprocess.run([sys.executable, "-m", "drct", "explain", *arguments, "-o", str(figure)], check=True)
    image = pyvips.Image.new_from_file(str(figure))
    return image.resize(WIDTH / image.width)


def lam(folder: Path) -> None:
    models = ("--model", "drct-light-x4", "drct-light-x2")
    explained(folder, "lam", str(PHOTO), "--at", "96,56", "--fold", "10", *models).jpegsave(str(PICTURES / "lam.jpg"), Q=90)


def flow(folder: Path) -> None:
    models = ("--model", "drct-light-x4", "drct-light-x3", "drct-light-x2")
    explained(folder, "flow", str(PHOTO), "--crop", "64", *models).pngsave(str(PICTURES / "flow.png"), palette=True)


def demo(folder: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "examples" / "demo.py"), str(PHOTO), str(folder)], check=True)
    pyvips.Image.new_from_file(str(folder / "side_by_side.png")).jpegsave(str(PICTURES / "demo.jpg"), Q=85)


def real(folder: Path) -> None:
    """The photograph degraded in three ways, below each other, enlarged by each network."""
    photo, options = read(PHOTO), DegradationOptions.preset("real")
    samples = [degrade_picture(photo, options, scale=1, seed=seed).pixels[EYE] for seed in SEEDS]
    panels = {"bicubic": [resize(sample, scale=4) for sample in samples]}
    for name in ("drct-light-x4", "drct-real-light-x4"):
        upscaler = drct.Upscaler(name)
        panels[name] = [upscaler.picture(Picture(sample)).picture.pixels for sample in samples]
    write(folder / "real.png", side_by_side([np.concatenate(column) for column in panels.values()], list(panels)))
    pyvips.Image.new_from_file(str(folder / "real.png")).jpegsave(str(PICTURES / "real.jpg"), Q=85)


MAKERS = {maker.__name__: maker for maker in (demo, real, lam, flow)}


def main() -> None:
    for name in sys.argv[1:] or MAKERS:
        with tempfile.TemporaryDirectory() as folder:
            MAKERS[name](Path(folder))


if __name__ == "__main__":
    main()
