"""Take a training run's weights into the package: half precision, with a card of what was measured, log, curve and last sheet kept.

    python tools/bundle.py runs/drct_light_x4 drct-light-x4 --data BENCHMARKS

BENCHMARKS is a folder with Set5, Set14 and BSD100 (any layout that 'drct test' knows).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from drct.weights import load_network, save_network
from drct.weights.models import BUNDLED, write_card

ROOT = Path(__file__).resolve().parents[1]
SETS = "Set5,Set14,BSD100"


def measure(model: Path, data: Path, scale: int) -> dict[str, float]:
    """PSNR on Y by benchmark, from ``drct test``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        command = [sys.executable, "-m", "drct", "test", "--model", str(model), "--data", str(data), "--sets", SETS]
        subprocess.run([*command, "--scale", str(scale), "--json", str(out)], check=True)
        report = json.loads(out.read_text())
    return {name: round(means["psnr"], 2) for name, means in report["models"][0]["means"].items()}


def keep_record(run: Path, name: str) -> None:
    """Log, curve and last sheet of validation crops, small enough for the repository."""
    folder = ROOT / "docs" / "training" / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "log.jsonl", folder / "log.jsonl")
    shutil.copy(run / "curve.png", folder / "curve.png")
    shutil.copy(sorted((run / "sheets").glob("*.png"))[-1], folder / "sheet.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="best.safetensors", help="file of the run to take")
    arguments = parser.parse_args()
    run, name = arguments.run, arguments.name
    network = load_network(run / arguments.weights)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    iterations = max(r["iteration"] for r in records)
    training = f"L1, bicubic LR, {iterations} iterations, options/train/{run.name}.yml"
    BUNDLED.mkdir(exist_ok=True)
    target = BUNDLED / f"{name}.safetensors"
    save_network(network, target, licence="Apache-2.0", training=training, dtype=torch.float16)
    scores = measure(target, arguments.data, network.scale)
    write_card(target, source="trained by this project", scores=scores)
    keep_record(run, name)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {scores}")


if __name__ == "__main__":
    main()
