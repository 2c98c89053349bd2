"""A few iterations of an option file on images made up, with checkpoint and validation: whether a long run would come through here.

    python benchmarks/rehearsal.py options/train/drct_light_x4_gpu.yml --iterations 60 --json rehearsal.json

All but paths and lengths is as the file says: batches, tones, faults, dead leaves, optimizer, precision. What is printed is the
run's own console; the last line is the rate of the second half, for ``total_iter`` to be set by.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from drct.checking import read_option_file
from drct.datasets.pack import write_pack
from drct.errors import Error
from drct.imaging import resize
from drct.places import check_place
from drct.training.log import read_log
from drct.training.loop import train
from drct.training.options import parse_options


def made_up(count: int, height: int, width: int) -> list[tuple[str, np.ndarray]]:
    """Images with soft and hard parts, by name."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, height // 16, width // 16, 3), np.uint8)
    return [(f"{i:03}", resize(image, size=(height, width))) for i, image in enumerate(coarse)]


def shortened(options: dict[str, Any], folder: Path, iterations: int) -> dict[str, Any]:
    """The options of a file for a run of so many iterations on the packs ``train`` and ``valid`` of a folder."""
    train_set = options["datasets"]["train"] | {"dataroot_gt": str(folder / "train")}
    valid = {"name": "valid", "type": "GroundTruthDataset", "dataroot_gt": str(folder / "valid")}
    return options | {
        "datasets": {"train": train_set, "val_1": valid},
        "train": options["train"] | {"total_iter": iterations, "warmup_iter": 1},
        "val": options.get("val", {}) | {"val_freq": iterations},
        "logger": {"print_freq": max(1, iterations // 2), "save_checkpoint_freq": max(1, iterations // 2)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", type=Path, help="option file without LR files of its own")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = shortened(read_option_file(arguments.options), folder, arguments.iterations)
        options, warnings = parse_options(data, str(arguments.options))
        print(*warnings, sep="\n")
        side = max(512, 2 * options.patch_size)
        write_pack(folder / "train", made_up(16, side, side))
        write_pack(folder / "valid", made_up(2, 256, 256))
        result = train(options, folder / "run", device=arguments.device)
        rates = [r["images_per_second"] for r in read_log(folder / "run") if "images_per_second" in r]
        images = options.train_set.batch_size_per_gpu * options.train.accumulate
        print(f"{rates[-1] / images:.2f} it/s, {rates[-1]:.1f} images/s", flush=True)
        if arguments.json:
            document = {"options": str(arguments.options), "images_per_second": rates, "best": result.best}
            arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"rehearsal: {error}")
