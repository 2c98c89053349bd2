from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drct.datasets.pack import write_pack


@pytest.fixture
def option_dict(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Options of a run that takes seconds: a tiny network with stochastic depth on a few smooth images."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :80] / 10
    images = [
        (f"{i}", np.stack([127 + 120 * np.sin(a * x + b * y) for a, b in rng.normal(size=(3, 2))], -1).astype(np.uint8))
        for i in range(4)
    ]
    write_pack(tmp_path / "pack", images)

    def make(**train: Any) -> dict[str, Any]:
        return {
            "name": "tiny",
            "scale": 2,
            "datasets": {
                "train": {"dataroot_gt": str(tmp_path / "pack"), "gt_size": 32, "batch_size_per_gpu": 2, "num_worker_per_gpu": 2},
                "val_1": {"type": "GroundTruthDataset", "dataroot_gt": str(tmp_path / "pack"), "max_images": 2},
            },
            "network_g": {
                "type": "drct_light",
                "embed_dim": 16,
                "gc": 16,
                "depths": [2, 2],
                "num_heads": [1, 1],
                "window_size": 8,
                "drop_path_rate": 0.3,
            },
            "train": {"total_iter": 20, "ema_decay": 0.9, "optim_g": {"type": "AdamW", "lr": 1e-3}, **train},
            "val": {"val_freq": 10, "metrics": {"psnr": {"type": "calculate_psnr"}, "ssim": {"type": "calculate_ssim"}}},
            "logger": {"print_freq": 5, "save_checkpoint_freq": 5},
        }

    return make
