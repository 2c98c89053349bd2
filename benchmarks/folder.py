"""What a file costs beside the network: folders of many tiny images through the smallest network.

    python benchmarks/folder.py [--counts 100 1000 10000] [--folder DIR] [--json FILE]

For each count a folder of images is made, planned (listing and naming), upscaled, and upscaled again with everything skipped. Each
count runs in a process of its own. Processor time is counted, since it does not depend on what else runs on the machine, and wall
time beside it. By default the folders lie in memory, where waiting for the disk costs nothing; --folder takes another place.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDE = 16  # of the images, in pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument(
        "--folder", type=Path, default=Path("/dev/shm") if os.path.isdir("/dev/shm") else Path(tempfile.gettempdir())
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments.folder)))
        return
    rows = []
    print("files   plan      first run             again, all skipped    network alone   memory      manifest")
    print("        ms/file   ms/file (wall)        ms/file (wall)        ms/file         MiB peak    bytes/file")
    for count in arguments.counts:
        command = [sys.executable, __file__, "--one", str(count), "--folder", str(arguments.folder)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        rows.append(row)
        (plan, _), (first, first_wall), (again, again_wall) = row["plan"], row["first"], row["again"]
        print(
            f"{count:<7} {plan:<9.3f} {first:<7.2f} ({first_wall:.2f}){'':<6} {again:<7.3f} ({again_wall:.3f}){'':<5} "
            f"{row['network']:<15.2f} {row['memory']:<11.0f} {row['manifest']:.0f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"side": SIDE, "rows": rows}, indent=2) + "\n")


def measure(count: int, place: Path) -> dict[str, Any]:
    """Milliseconds of processor time and of the clock per file, by stage."""
    import numpy as np
    import torch

    from drct.imaging import write
    from drct.networks import create_network
    from drct.upscaling import UpscaleOptions, Upscaler, manifest, upscale
    from drct.upscaling.jobs import plan_jobs

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="drct-folder-", dir=place))
    try:
        (folder / "photos").mkdir()
        rng = np.random.default_rng(0)
        write(folder / "one.png", rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        data = (folder / "one.png").read_bytes()
        for i in range(count):
            (folder / "photos" / f"IMG_{i:06}.png").write_bytes(data)
        torch.manual_seed(0)
        small = {"embed_dim": 8, "gc": 4, "depths": [1], "num_heads": [2], "window_size": 4, "upsampler": "pixelshuffledirect"}
        upscaler = Upscaler(create_network("drct", scale=4, **small), device="cpu")
        options = UpscaleOptions(inputs=(folder / "photos",), output=folder / "out")
        image = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        upscaler(image)
        calls = min(count, 500)
        network, _ = per_file(calls, lambda: [upscaler(image) for _ in range(calls)])
        plan = per_file(count, lambda: plan_jobs(options, 4))
        first = per_file(count, lambda: check(upscale(options, None, upscaler).count("done") == count))
        again = per_file(count, lambda: check(upscale(options, None, upscaler).count("skipped") == count))
        size = (folder / "out" / manifest.NAME).stat().st_size / count
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    finally:
        shutil.rmtree(folder)
    return {"files": count, "plan": plan, "first": first, "again": again, "network": network, "memory": memory, "manifest": size}


def check(as_expected: bool) -> None:
    if not as_expected:
        raise SystemExit("not all files were done, or skipped")


def per_file(count: int, work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of processor time and of the clock that work takes, divided by a count."""
    wall, used = time.perf_counter(), time.process_time()
    work()
    return (time.process_time() - used) * 1e3 / count, (time.perf_counter() - wall) * 1e3 / count


if __name__ == "__main__":
    main()
