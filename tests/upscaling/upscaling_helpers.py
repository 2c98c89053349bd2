"""Small things that the tests of this room share: a tiny network and a picture."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from drct.networks import SuperResolutionNetwork, create_network
from drct.upscaling import manifest


def tiny_network(scale: int = 4) -> SuperResolutionNetwork:
    """A network small enough to run hundreds of times, with weights large enough that its windows matter."""
    network = create_network(
        "drct", scale=scale, embed_dim=8, gc=4, depths=[1], num_heads=[2], window_size=4, upsampler="pixelshuffledirect"
    )
    generator = torch.Generator().manual_seed(scale)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        # as after training: mostly interpolation, the rest a small residue
        network.upsample[0].weight *= 0.2
        network.upsample[0].bias.zero_()
    return network.eval()


def smooth_image(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 ``(H, W, C)``: waves of several lengths, since noise hides seams."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(channels):
        waves = sum(np.sin(rng.uniform(0, 0.6) * y + rng.uniform(0, 0.6) * x + rng.uniform(0, 6)) for _ in range(6))
        planes.append(127.5 + 20 * waves)
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def content(folder: Path) -> dict[str, bytes]:
    """All files but the manifest."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(manifest.NAME))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


_NURSERY = """
import json, os, sys
import torch
import drct.upscaling
from drct import cli
print("ready", flush=True)
for line in sys.stdin:
    arguments, log = json.loads(line)
    if arguments[0] == "wait":
        print(os.waitpid(arguments[1], 0)[1], flush=True)
        continue
    child = os.fork()
    if child == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = cli.run(arguments)
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
"""


class Nursery:
    """Starts ``drct`` again and again in fractions of a second: a process that has imported everything, and its forks."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._process = subprocess.Popen([sys.executable, "-c", _NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def start(self, *arguments: object) -> int:
        """Start ``drct ARGUMENTS`` and return the number of its process."""
        return int(self._ask([str(argument) for argument in arguments]))

    def wait(self, child: int) -> int:
        """The exit code of a process, negative if a signal ended it."""
        return os.waitstatus_to_exitcode(int(self._ask(["wait", child])))

    def kill(self, child: int) -> bool:
        """``kill -9`` a process; False if it had ended before."""
        os.kill(child, signal.SIGKILL)
        return self.wait(child) == -signal.SIGKILL

    def close(self) -> None:
        self._process.kill()  # leaving torch in order takes seconds
        self._process.communicate()

    def _ask(self, what: list[object]) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, str(self.log)]) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
