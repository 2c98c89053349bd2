"""Take a training run's weights into the package: half precision, with a card of what was measured, log, curve and last sheet kept.

    python tools/bundle.py runs/drct_light_x4 drct-light-x4 --data BENCHMARKS
    python tools/bundle.py runs/drct_real_light_x4_gan drct-real-light-x4 --degraded IMAGES --weights latest.safetensors

BENCHMARKS is a folder with Set5, Set14 and BSD100 (any layout that 'drct test' knows). A network for images as people have them is
measured on IMAGES instead: clean ones that training did not see, degraded by the preset 'real' with seed 0.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from drct.training.options import TrainOptions, read_options
from drct.weights import load_network, save_network
from drct.weights.models import BUNDLED, write_card

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "training"
SETS = "Set5,Set14,BSD100"
DEGRADED = "validation images, preset real"


def measure(model: Path, data: Path, scale: int) -> dict[str, float]:
    """PSNR on Y by benchmark, from ``drct test``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        command = [sys.executable, "-m", "drct", "test", "--model", str(model), "--data", str(data), "--sets", SETS]
        subprocess.run([*command, "--scale", str(scale), "--json", str(out)], check=True)
        report = json.loads(out.read_text())
    return {name: round(means["psnr"], 2) for name, means in report["models"][0]["means"].items()}


def measure_degraded(model: Path, data: Path) -> tuple[dict[str, float], dict[str, float]]:
    """PSNR on Y and LPIPS of a model on degraded images, from ``benchmarks/real_world.py``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "real_world.py"), "--data", str(data), "--json", str(out)]
        subprocess.run([*command, "--models", str(model)], check=True)
        found = json.loads(out.read_text())[str(model)]
    return {DEGRADED: round(found["psnr"], 2)}, {DEGRADED: round(found["lpips"], 4)}


def said_before(name: str) -> str:
    """The line on the weights that are bundled now."""
    return str(json.loads((BUNDLED / f"{name}.json").read_text())["training"])


def went_on(before: str, iterations: int, recipe: str) -> str:
    """That line with the iterations of one more run, which began from those weights."""
    counted = re.search(r"(\d+) iterations(?: in (\d+) runs)?", before)
    if counted is None:
        sys.exit(f"'{before}' names no iterations to add to")
    total, runs = int(counted[1]) + iterations, int(counted[2] or 1) + 1
    line = f"{before[: counted.start()]}{total} iterations in {runs} runs{before[counted.end() :]}"
    return line if recipe in line else f"{line}, {recipe}"


def describe(run: Path, options: TrainOptions, iterations: int, before: str | None) -> str:
    """One line on how a network was made; ``before`` is that on the bundled weights where they went on."""
    recipe = f"options/train/{run.name}.yml"
    if before is not None:
        return went_on(before, iterations, recipe)
    pixel = options.train.pixel_opt
    losses = "no loss on pixels" if pixel is None else pixel.type.removesuffix("Loss")
    start = options.path.pretrain_network_g
    after = f" after {Path(start).parent.name if Path(start).suffix else start}" if start else ""
    if options.degradation is None:
        return f"{losses}, bicubic LR, {iterations} iterations{after}, {recipe}"
    if options.train.perceptual_opt is not None:
        losses += f", perceptual ({options.train.perceptual_opt.vgg_type.upper()})"
    if options.train.gan_opt is not None:
        losses += " and GAN losses"
    return f"second-order degradations, {losses}, {iterations} iterations{after}, {recipe}"


def keep_record(run: Path, name: str, *, continued: bool) -> None:
    """Log, curve and last sheet of validation crops, small enough to keep; of the runs before it in ``1``, ``2`` ..."""
    folder = RECORDS / name
    if continued:
        earlier = folder / str(1 + sum(entry.is_dir() for entry in folder.iterdir()))
        earlier.mkdir()
        for file in ("log.jsonl", "curve.png"):
            (folder / file).rename(earlier / file)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # of weights that these do not come from
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "log.jsonl", folder / "log.jsonl")
    shutil.copy(run / "curve.png", folder / "curve.png")
    shutil.copy(sorted((run / "sheets").glob("*.png"))[-1], folder / "sheet.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--data", type=Path, metavar="BENCHMARKS")
    images.add_argument("--degraded", type=Path, metavar="IMAGES")
    parser.add_argument("--weights", default="best.safetensors", help="file of the run to take")
    arguments = parser.parse_args()
    run, name = arguments.run, arguments.name
    network = load_network(run / arguments.weights)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    iterations = max(r["iteration"] for r in records)
    options, _ = read_options(ROOT / "options" / "train" / f"{run.name}.yml")
    goes_on = options.path.pretrain_network_g == name
    record = RECORDS / name / "log.jsonl"
    again = (
        goes_on and record.exists() and record.read_bytes() == (run / "log.jsonl").read_bytes()
    )  # another choice of one run's weights
    training = said_before(name) if again else describe(run, options, iterations, said_before(name) if goes_on else None)
    BUNDLED.mkdir(exist_ok=True)
    target = BUNDLED / f"{name}.safetensors"
    save_network(network, target, licence="Apache-2.0", training=training, dtype=torch.float16)
    lpips: dict[str, float] = {}
    if arguments.degraded is None:
        scores = measure(target, arguments.data, network.scale)
    else:
        scores, lpips = measure_degraded(target, arguments.degraded)
    write_card(target, source="trained by this project", scores=scores, lpips=lpips)
    keep_record(run, name, continued=goes_on and not again)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, PSNR {scores}, LPIPS {lpips or 'not measured'}")


if __name__ == "__main__":
    main()
