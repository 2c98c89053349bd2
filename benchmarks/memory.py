"""Peak memory against the size of the image, in strips and as a whole.

    python benchmarks/memory.py
    python benchmarks/memory.py --sizes 3000x2000 --model drct-light-x4 --rows 20000

Each size runs in a process of its own: a synthetic PNG is read, made larger and written as TIFF. The network is a stand-in that
repeats pixels, since memory is what is measured; ``--model`` takes a real one. What the process holds before the image (Python,
torch, the network and one tile of it) is printed apart, and the peak is what comes on top of it. Every row of tiles takes the same
memory, so of large images only the first ``--rows`` rows are computed; the output says so, and ``--rows 0`` computes all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import drct
import drct.imaging
from drct.cli.bench import parse_size
from drct.imaging import Encoding, PictureInfo, write_strips
from drct.networks import SuperResolutionNetwork
from drct.places import check_place

SIZES = ("3000x2000", "7500x5000", "15000x10000", "30000x20000")
STAND_IN = "stand-in"


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The stand-in has none."""


class Repeat(SuperResolutionNetwork):
    """Repeats pixels; the context that it asks for is that of the real networks."""

    architecture = STAND_IN

    def __init__(self, scale: int) -> None:
        super().__init__(NoOptions(), scale=scale, in_chans=3, pad_multiple=16, img_range=1.0)

    def forward_padded(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


class Enough(Exception):
    """As many rows as were wanted are done."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WxH")
    parser.add_argument("--scale", type=int, default=4, help="of the stand-in")
    parser.add_argument("--model", default=STAND_IN)
    parser.add_argument("--depth", choices=("uint8", "uint16"), default="uint8")
    parser.add_argument("--alpha", action="store_true", help="with transparency, which goes through the network too")
    parser.add_argument("--whole", action="store_true", help="not in strips: needs the memory of the whole")
    parser.add_argument("--rows", type=int, default=1000, help="of the input that are computed; 0 for all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("INPUT", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    if arguments.child:
        print(json.dumps(measure(arguments, Path(arguments.child[0]), Path(arguments.child[1]))))
        return
    lines = []
    print(f"network: {arguments.model}, {arguments.depth}{' with alpha' if arguments.alpha else ''}, one thread")
    print("| input | result | rows computed | network and Python | peak beyond it | image and result | CPU s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for size in arguments.sizes:
        height, width = parse_size(size.lower())
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "in.png")
            synthesize(source, height, width, arguments.depth, arguments.alpha)
            command = [sys.executable, __file__, *sys.argv[1:], "--child", str(source), str(Path(folder, "out.tif"))]
            one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
            done = subprocess.run(command, env=one_thread, check=True, stdout=subprocess.PIPE, text=True)
        line = json.loads(done.stdout.splitlines()[-1])
        lines.append(line)
        cells = [f"{width} x {height}", "{} x {}".format(*line["result"]), f"{line['rows']} of {height}"]
        cells += [f"{line['before_mib']} MiB", f"**{line['peak_mib'] - line['before_mib']} MiB**", f"{line['pixels_mib']} MiB"]
        print(f"| {' | '.join(cells)} | {line['seconds']:.0f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=1))


def synthesize(path: Path, height: int, width: int, depth: str, alpha: bool) -> None:
    """An image of slow waves, written strip by strip."""
    info = PictureInfo(height, width, depth=depth, has_alpha=alpha)
    peak = np.iinfo(depth).max
    waves = [np.sin(np.arange(width) / (200 + 70 * channel)) for channel in range(4)]
    row = ((np.stack(waves, -1) + 1) / 2 * peak).astype(depth)
    with write_strips(path, info, encoding=Encoding(compression=1)) as writer:
        for start in range(0, height, 200):
            rows = np.broadcast_to(np.roll(row, start, axis=0), (min(200, height - start), width, 4))
            writer.write(rows[:, :, :3], rows[:, :, 3] if alpha else None)


def measure(arguments: argparse.Namespace, source: Path, target: Path) -> dict[str, object]:
    """Run one image; memory in MiB."""
    os.environ.setdefault("DRCT_MAX_PIXELS", str(10**11))
    network = Repeat(arguments.scale) if arguments.model == STAND_IN else arguments.model
    upscaler = drct.Upscaler(network, device="cpu")
    info = drct.imaging.read_info(source)
    upscaler(np.zeros((512, 512, 3), np.uint8))  # one tile
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    enough = 1.0 if not arguments.rows else arguments.rows / info.height
    start = time.process_time()
    rows = info.height

    def progress(done: float) -> None:
        nonlocal rows
        if done >= enough and done < 1:
            rows = round(done * info.height)
            raise Enough

    try:
        encoding = Encoding(compression=1)
        upscaler.file(source, target, encoding=encoding, strips="off" if arguments.whole else "on", progress=progress)
    except Enough:
        assert not target.exists()
    scale = upscaler.default_scale
    samples = 3 + arguments.alpha
    total = info.height * info.width * (1 + scale**2) * samples * np.dtype(arguments.depth).itemsize
    return {
        "input": [info.width, info.height],
        "result": [info.width * scale, info.height * scale],
        "rows": rows,
        "before_mib": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "pixels_mib": total >> 20,
        "seconds": time.process_time() - start,
    }


if __name__ == "__main__":
    try:
        main()
    except drct.Error as error:
        sys.exit(f"memory: {error}")
