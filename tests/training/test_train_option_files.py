"""The option files of this repository, and the keys of the published ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from drct.networks import create_network
from drct.training.options import parse_options, read_options

OPTIONS = Path(__file__).resolve().parents[2] / "options"
FILES = sorted((OPTIONS / "train").glob("*.yml"))


def test_files_equal_the_table() -> None:
    result = subprocess.run([sys.executable, OPTIONS / "make.py", "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_file_is_valid(path: Path) -> None:
    options, warnings = read_options(path)
    assert warnings == []
    assert options.name == path.stem
    network = dict(options.network_g)
    assert create_network(network.pop("type").lower(), scale=options.scale, **network).scale == options.scale
    assert all(m.crop_border == options.scale for m in options.val.metrics.values())


def test_published_keys_are_accepted() -> None:
    """Every key that a published classical file holds, in one."""
    data = {
        "name": "train_DRCT_SRx4_finetune_from_SRx2",
        "model_type": "DRCTModel",
        "scale": 4,
        "num_gpu": "auto",
        "manual_seed": 0,
        "datasets": {
            "train": {
                "name": "DF2K",
                "type": "PairedImageDataset",
                "dataroot_gt": "datasets/DF2K/DF2K_HR_sub",
                "dataroot_lq": "datasets/DF2K/DF2K_bicx4_sub",
                "meta_info_file": "meta_info_DF2Ksub_GT.txt",
                "io_backend": {"type": "disk"},
                "gt_size": 256,
                "use_hflip": True,
                "use_rot": True,
                "use_shuffle": True,
                "num_worker_per_gpu": 6,
                "batch_size_per_gpu": 4,
                "dataset_enlarge_ratio": 1,
                "prefetch_mode": None,
            },
            "val_1": {
                "name": "Set5",
                "type": "PairedImageDataset",
                "dataroot_gt": "a",
                "dataroot_lq": "b",
                "io_backend": {"type": "disk"},
            },
        },
        "network_g": {
            "type": "DRCT",
            "upscale": 4,
            "compress_ratio": 3,
            "squeeze_factor": 30,
            "conv_scale": 0.01,
            "overlap_ratio": 0.5,
        },
        "path": {"pretrain_network_g": None, "param_key_g": "params_ema", "strict_load_g": True, "resume_state": None},
        "train": {
            "ema_decay": 0.999,
            "optim_g": {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [125000, 200000], "gamma": 0.5},
            "total_iter": 250000,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        },
        "val": {
            "val_freq": 5e3,
            "save_img": False,
            "pbar": False,
            "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": True, "better": "higher"}},
        },
        "logger": {
            "print_freq": 100,
            "save_checkpoint_freq": 5e3,
            "use_tb_logger": True,
            "wandb": {"project": None, "resume_id": None},
        },
        "dist_params": {"backend": "nccl", "port": 29500},
    }
    options, warnings = parse_options(data)
    assert options.val.val_freq == 5000
    dead = ("num_gpu", "io_backend", "use_shuffle", "prefetch_mode", "pbar", "use_tb_logger", "wandb", "dist_params")
    assert all(any(key in line for line in warnings) for key in dead)
