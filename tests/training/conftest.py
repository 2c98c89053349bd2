from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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

    optimizer = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]}

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
            "train": {"total_iter": 20, "ema_decay": 0.9, "optim_g": optimizer, **train},
            "val": {"val_freq": 10, "metrics": {m: {"type": f"calculate_{m}", "test_y_channel": True} for m in ("psnr", "ssim")}},
            "logger": {"print_freq": 5, "save_checkpoint_freq": 5},
        }

    return make


@pytest.fixture
def gan_dict(option_dict: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The same run on degraded images and against a discriminator; the classifier of the perceptual loss is random."""
    torch.manual_seed(0)
    features = {
        "features.0.weight": 0.2 * torch.randn(64, 3, 3, 3),
        "features.0.bias": torch.zeros(64),
        "features.2.weight": 0.05 * torch.randn(64, 64, 3, 3),
        "features.2.bias": torch.zeros(64),
    }
    save_file(features, tmp_path / "vgg.safetensors")

    def make(**train: Any) -> dict[str, Any]:
        gan = {
            "pixel_opt": {"type": "L1Loss"},
            "optim_g": {"type": "Adam", "lr": 5e-4, "betas": [0.9, 0.99]},
            "optim_d": {"type": "Adam", "lr": 5e-4, "betas": [0.9, 0.99]},
            "perceptual_opt": {
                "vgg_type": "vgg16",
                "layer_weights": {"conv1_2": 0.1},
                "path": str(tmp_path / "vgg.safetensors"),
            },
            "gan_opt": {"gan_type": "vanilla", "loss_weight": 0.1},
        }
        data = option_dict(**(gan | train))
        data |= {"model_type": "RealDRCTGANModel", "degradation": "real", "queue_size": 8, "network_d": {"num_feat": 8}}
        data["datasets"]["train"] |= {"type": "RealESRGANDataset", "crop_size": 48, "use_rot": False}
        data["datasets"]["val_1"] |= {"degradation": "real", "max_images": 1}
        return data

    return make
