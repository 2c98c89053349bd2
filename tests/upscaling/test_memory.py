"""Tile sizes by memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drct.upscaling import memory

GB = 1 << 30


class Program:
    """Needs a known number of bytes for each input pixel."""

    def __init__(self, bytes_per_pixel: int, device: str = "cpu", pad_multiple: int = 16) -> None:
        self.bytes_per_pixel = bytes_per_pixel
        self.device = torch.device(device)
        self.pad_multiple = pad_multiple

    def memory_estimate(self, height: int, width: int, batch: int = 1) -> int:
        return batch * height * width * self.bytes_per_pixel


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch):
    """Pretend that the device has so many bytes."""

    def pretend(total: int) -> None:
        monkeypatch.setattr(memory, "memory_class", lambda device: total)

    return pretend


@pytest.mark.parametrize(("total", "tile"), [(64 * GB, 512), (16 * GB, 384), (4 * GB, 192), (GB, 96), (GB // 16, 64), (0, 64)])
def test_the_tile_follows_from_the_memory(has, total, tile):
    has(total)
    assert memory.choose_tile(Program(20_000), 5000, 5000) == tile


def test_small_images_are_taken_whole(has):
    has(64 * GB)
    assert memory.choose_tile(Program(20_000), 480, 640) is None
    assert memory.choose_tile(Program(20_000), 64, 6000) is None
    assert memory.choose_tile(Program(20_000), 900, 900) == 512
    has(4 * GB)
    assert memory.choose_tile(Program(20_000), 480, 640) == 192


def test_batches_are_for_gpus(has):
    has(64 * GB)
    assert memory.choose_batch(Program(20_000), 64) == 1
    assert memory.choose_batch(Program(20_000, "cuda"), 512) == 1
    assert memory.choose_batch(Program(20_000, "cuda"), 256) == 4
    assert memory.choose_batch(Program(20_000, "cuda"), None) == 1
    has(8 * GB)
    assert memory.choose_batch(Program(20_000, "cuda"), 256) == 1


def test_this_machine_has_memory():
    total, free = memory.system_memory(), memory.free_system_memory()
    assert total > 1 << 28
    assert 0 < free <= total
    assert memory.memory_class(torch.device("cpu")) <= total < 2 * memory.memory_class(torch.device("cpu"))


@pytest.mark.parametrize(("total", "rounded"), [(15.6, 8), (16, 16), (31.9, 16)])
def test_memory_is_rounded_down_to_a_power_of_two(monkeypatch: pytest.MonkeyPatch, total: float, rounded: int) -> None:
    monkeypatch.setattr(memory, "system_memory", lambda: int(total * GB))
    assert memory.memory_class(torch.device("cpu")) == rounded * GB


def test_limits_of_containers_count(tmp_path: Path):
    own = tmp_path / "cgroup"
    own.write_text("0::/user/app\n")
    root = tmp_path / "fs"
    group = root / "user" / "app"
    group.mkdir(parents=True)
    (root / "user" / "memory.max").write_text(f"{4 * GB}\n")
    (root / "user" / "memory.current").write_text(f"{GB}\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    assert list(memory._cgroups(root, own)) == [(4 * GB, GB)]
    own.write_text("3:memory:/x\n2:cpu:/x\n")
    (root / "memory" / "x").mkdir(parents=True)
    (root / "memory" / "x" / "memory.limit_in_bytes").write_text(str(2 * GB))
    (root / "memory" / "x" / "memory.usage_in_bytes").write_text("7")
    assert list(memory._cgroups(root, own)) == [(2 * GB, 7)]
    assert list(memory._cgroups(root, tmp_path / "missing")) == []


def test_cache_that_the_kernel_gives_up_is_free(tmp_path: Path):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "memory").mkdir(parents=True)
    own.write_text("0::/\n")
    (root / "memory.max").write_text(f"{4 * GB}\n")
    (root / "memory.current").write_text(f"{3 * GB}\n")
    (root / "memory.stat").write_text(f"anon {GB}\nfile {2 * GB}\ninactive_file {GB}\nactive_file {GB}\n")
    assert list(memory._cgroups(root, own)) == [(4 * GB, 2 * GB)]
    own.write_text("3:memory:/\n")
    (root / "memory" / "memory.limit_in_bytes").write_text(str(2 * GB))
    (root / "memory" / "memory.usage_in_bytes").write_text(str(GB))
    (root / "memory" / "memory.stat").write_text(f"inactive_file 5\ntotal_inactive_file {2 * GB}\n")
    assert list(memory._cgroups(root, own)) == [(2 * GB, 0)]  # the two files are not of one moment
