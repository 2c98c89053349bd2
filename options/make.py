"""Write the option files of the published trainings from one table, so that no copy can drift.

    python options/make.py           # write options/train/*.yml
    python options/make.py --check   # say which files differ from the table, exit code 1 if any does

Recipes: arXiv 2404.00722 and the option files published with it, with their slips corrected: every file trains DRCT, validates with
a border of the scale, reads its LR from the folder of its scale, x4 from x2 leaves the upsampler out, and the second stage of
Real-DRCT begins with its first stage instead of another network's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "train"
GROUPS = {"DRCT": 6, "DRCT-L": 12, "MambaDRCT": 6}
PUBLISHED = ("DRCT", "DRCT-L")

TEMPLATE = """\
# {title}
# Written by options/make.py: change the table there, not this file.
# torchrun --nproc-per-node 8 -m drct train -opt options/train/{name}.yml --resume auto
name: {name}
scale: {scale}
manual_seed: 0

datasets:
  train:
{train_set}
    gt_size: {gt_size}
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 4
  val_1:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/GTmod{scale}
    dataroot_lq: datasets/Set5/LRbicx{scale}
  val_2:
    name: Set14
    type: PairedImageDataset
    dataroot_gt: datasets/Set14/GTmod{scale}
    dataroot_lq: datasets/Set14/LRbicx{scale}

network_g:
{network}
  mlp_ratio: 2
  gc: 32
  upsampler: pixelshuffle
  resi_connection: 1conv

path:
{path}

train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: {lr}
    weight_decay: 0
    betas: [0.9, 0.99]
  scheduler:
    type: MultiStepLR
    milestones: {milestones}
    gamma: 0.5
  total_iter: {total}
  warmup_iter: -1
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean

val:
  val_freq: {val_freq}
  metrics:
    psnr:
      type: calculate_psnr
      crop_border: {scale}
      test_y_channel: true
      better: higher
    ssim:
      type: calculate_ssim
      crop_border: {scale}
      test_y_channel: true
      better: higher

logger:
  print_freq: 100
  save_checkpoint_freq: {val_freq}
"""

# The two stages for images as people have them: ground truth only, degraded on the way (arXiv 2107.10833).
REAL_TEMPLATE = """\
# Real-DRCT x4, {title}
# Written by options/make.py: change the table there, not this file.
# torchrun --nproc-per-node 8 -m drct train -opt options/train/{name}.yml --resume auto
name: {name}
model_type: {model_type}
scale: 4
manual_seed: 0

# sharpen the ground truth
{sharpening}

# first order of the degradation; resize_prob: up, down, keep
resize_prob: [0.2, 0.7, 0.1]
resize_range: [0.15, 1.5]
gaussian_noise_prob: 0.5
noise_range: [1, 30]
poisson_scale_range: [0.05, 3]
gray_noise_prob: 0.4
jpeg_range: [30, 95]

# second order
second_blur_prob: 0.8
resize_prob2: [0.3, 0.4, 0.3]
resize_range2: [0.3, 1.2]
gaussian_noise_prob2: 0.5
noise_range2: [1, 25]
poisson_scale_range2: [0.05, 2.5]
gray_noise_prob2: 0.4
jpeg_range2: [30, 95]

gt_size: 256
queue_size: 180

datasets:
  train:
    name: DF2K+OST
    type: RealESRGANDataset
    dataroot_gt: datasets/DF2K_OST/GT_sub
    blur_kernel_size: 21
    kernel_list: [iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso]
    kernel_prob: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob: 0.1
    blur_sigma: [0.2, 3]
    betag_range: [0.5, 4]
    betap_range: [1, 2]
    blur_kernel_size2: 21
    kernel_list2: [iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso]
    kernel_prob2: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob2: 0.1
    blur_sigma2: [0.2, 1.5]
    betag_range2: [0.5, 4]
    betap_range2: [1, 2]
    final_sinc_prob: 0.8
    gt_size: 256
    use_hflip: true
    use_rot: false
    num_worker_per_gpu: 5
    batch_size_per_gpu: 4
  val_1:
    name: Set14
    type: GroundTruthDataset
    dataroot_gt: datasets/Set14/GTmod4
    degradation: real

network_g:
{network}
  mlp_ratio: 2
  gc: 32
  upsampler: pixelshuffle
  resi_connection: 1conv
{discriminator}
path:
{path}

train:
  ema_decay: 0.999
  optim_g:
    type: Adam
    lr: 1e-4
    weight_decay: 0
    betas: [0.9, 0.99]
{optimizer}  scheduler:
    type: MultiStepLR
    milestones: [{total}]
    gamma: 0.5
  total_iter: {total}
  warmup_iter: -1
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean
{losses}
val:
  val_freq: 10000
  metrics:
    lpips:
      type: calculate_lpips
      crop_border: 4
    psnr:
      type: calculate_psnr
      crop_border: 4
      test_y_channel: true
      better: higher

logger:
  print_freq: 200
  save_checkpoint_freq: 10000
"""

REAL_STAGES = {
    "train_Real_DRCT_SRx4_mse_model": {
        "title": "stage one: second-order degradations, L1",
        "model_type": "RealDRCTMSEModel",
        "sharpening": "gt_usm: true",
        "discriminator": "",
        "path": "  resume_state: ~",
        "optimizer": "",
        "total": 1_000_000,
        "losses": "",
    },
    "train_Real_DRCT_SRx4_finetune_from_mse_model": {
        "title": "stage two: stage one against a discriminator",
        "model_type": "RealDRCTGANModel",
        "sharpening": "l1_gt_usm: true\npercep_gt_usm: true\ngan_gt_usm: false",
        "discriminator": """
network_d:
  type: UNetDiscriminatorSN
  num_in_ch: 3
  num_feat: 64
  skip_connection: true
""",
        "path": "  pretrain_network_g: runs/train_Real_DRCT_SRx4_mse_model/latest.safetensors\n  strict_load_g: true",
        "optimizer": """\
  optim_d:
    type: Adam
    lr: 1e-4
    weight_decay: 0
    betas: [0.9, 0.99]
""",
        "total": 400_000,
        "losses": """\
  perceptual_opt:
    type: PerceptualLoss
    layer_weights:  # before ReLU
      conv1_2: 0.1
      conv2_2: 0.1
      conv3_4: 1
      conv4_4: 1
      conv5_4: 1
    vgg_type: vgg19
    use_input_norm: true
    perceptual_weight: 1.0
    style_weight: 0
    range_norm: false
    criterion: l1
  gan_opt:
    type: GANLoss
    gan_type: vanilla
    real_label_val: 1.0
    fake_label_val: 0.0
    loss_weight: 0.1
  net_d_iters: 1
  net_d_init_iters: 0
""",
    },
}

DRCT = """\
  type: DRCT
  upscale: {scale}
  in_chans: 3
  img_size: 64
  window_size: 16
  img_range: 1.0
  depths: {depths}
  embed_dim: 180
  num_heads: {depths}"""
MAMBA_DRCT = """\
  type: mamba_drct
  upscale: {scale}
  in_chans: 3
  img_size: 64
  img_range: 1.0
  depths: {depths}
  embed_dim: 180
  expand: 1.0
  d_state: 16"""

DF2K = """\
    name: DF2K
    type: PairedImageDataset
    dataroot_gt: datasets/DF2K/DF2K_HR_sub
    dataroot_lq: datasets/DF2K/DF2K_bicx{scale}_sub"""
IMAGENET = """\
    name: ImageNet
    type: ImageNetPairedDataset
    dataroot_gt: datasets/ImageNet/GT"""

# kind: title, training set, learning rate, milestones and length in thousands, validation every so many iterations
RECIPES = {
    "from_scratch": ("on DF2K from scratch", DF2K, "2e-4", (250, 400, 450, 475), 500, 5000),
    "ImageNet_from_scratch": ("pretraining on ImageNet", IMAGENET, "2e-4", (300, 500, 650, 700, 750), 800, 10000),
    "finetune_from_ImageNet_pretrain": ("on DF2K after ImageNet", DF2K, "1e-5", (125, 200, 225, 240), 250, 5000),
    "finetune_from_SRx2": ("on DF2K, body taken from x2", DF2K, "1e-4", (125, 200, 225, 240), 250, 5000),
}


def runs() -> Iterator[tuple[str, str, int]]:
    """Network, recipe and scale of each published training, and of the one that was announced and never published."""
    for scale in (2, 3, 4):
        yield "DRCT", "from_scratch", scale
        for network in PUBLISHED:
            yield network, "ImageNet_from_scratch", scale
            yield network, "finetune_from_ImageNet_pretrain", scale
    yield "DRCT", "finetune_from_SRx2", 4
    yield "MambaDRCT", "from_scratch", 4


def option_file(network: str, recipe: str, scale: int) -> tuple[str, str]:
    """Name and text of one option file."""
    kind, train_set, lr, milestones, total, val_freq = RECIPES[recipe]
    name = f"train_{network}_SRx{scale}_{recipe}"
    path = "  resume_state: ~"
    if recipe == "finetune_from_ImageNet_pretrain":
        path = (
            f"  pretrain_network_g: runs/train_{network}_SRx{scale}_ImageNet_from_scratch/latest.safetensors\n  strict_load_g: true"
        )
    elif recipe == "finetune_from_SRx2":
        path = f"  pretrain_network_g: runs/train_{network}_SRx2_from_scratch/latest.safetensors\n  skip_upsampler_g: true"
    return name, TEMPLATE.format(
        title=f"{network} x{scale}: {kind}",
        name=name,
        scale=scale,
        train_set=train_set.format(scale=scale),
        gt_size=64 * scale,
        network=(MAMBA_DRCT if network == "MambaDRCT" else DRCT).format(scale=scale, depths=[6] * GROUPS[network]),
        path=path,
        lr=lr,
        milestones=[1000 * m for m in milestones],
        total=1000 * total,
        val_freq=val_freq,
    )


def option_files() -> Iterator[tuple[str, str]]:
    """Name and text of every option file."""
    for run in runs():
        yield option_file(*run)
    for name, stage in REAL_STAGES.items():
        yield name, REAL_TEMPLATE.format(name=name, network=DRCT.format(scale=4, depths=[6] * GROUPS["DRCT"]), **stage)


def main(arguments: list[str]) -> int:
    different = 0
    for name, text in option_files():
        path = FOLDER / f"{name}.yml"
        if path.exists() and path.read_text() == text:
            continue
        different += 1
        if "--check" in arguments:
            print(f"{path} differs from the table")
        else:
            path.write_text(text)
            print(f"wrote {path}")
    return int("--check" in arguments and different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
