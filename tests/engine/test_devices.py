"""Names of devices and precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drct.engine import devices, resolve_device, resolve_precision
from drct.errors import DeviceError


def test_auto_is_the_cpu_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(DeviceError, match=f"'{name}' is not available"):
            resolve_device(name)


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index == 0 else (9, 0))
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(DeviceError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")
    assert resolve_precision("auto", "cuda:1") == "bf16"
    assert resolve_precision("auto", "cuda:0") == "fp32"
    assert resolve_precision("fp16", "cuda:0") == "fp16"


@pytest.mark.parametrize(
    ("vendor", "instructions", "granted", "expected"),
    [
        ("AuthenticAMD", "avx2", True, "fp32"),
        ("AuthenticAMD", "avx2 avx512_bf16", True, "bf16"),
        ("GenuineIntel", "avx2 avx512_bf16", True, "fp32"),
        ("GenuineIntel", "avx2 avx512_bf16 amx_bf16 amx_tile", True, "bf16"),
        ("GenuineIntel", "avx2 avx512_bf16 amx_bf16 amx_tile", False, "fp32"),
        ("", "bf16", True, "fp32"),
    ],
)
def test_auto_precision_on_a_cpu_follows_its_instructions(
    vendor: str, instructions: str, granted: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {instructions}\n")
    monkeypatch.setattr(devices, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(devices, "bf16_speedup", lambda: pytest.fail("a measurement must not decide about bytes"))
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: granted)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("fp32", "cpu") == "fp32"


def test_instructions_are_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(devices, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: True)
    cpuinfo.write_text("processor\t: 0\nflags : fpu avx2 avx512_bf16 amx_bf16 amx_tile\nprocessor : 1\nflags : fpu\n")
    assert devices.bf16_instructions() == ("avx512_bf16", "amx_bf16")
    cpuinfo.write_text("processor\t: 0\nFeatures : fp asimd bf16\n")
    assert devices.bf16_instructions() == ("bf16",)
    cpuinfo.unlink()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert devices.bf16_instructions() == ("avx512_bf16",)


def test_speedup_is_measured() -> None:
    assert devices.bf16_speedup() > 0
