"""Names of devices and precisions."""

from __future__ import annotations

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
    ("instructions", "speedup", "expected"), [((), 9.0, "fp32"), (("amx_bf16",), 1.1, "fp32"), (("amx_bf16",), 2.0, "bf16")]
)
def test_auto_precision_on_a_cpu_is_never_slower(
    instructions: tuple[str, ...], speedup: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "bf16_instructions", lambda: instructions)
    monkeypatch.setattr(devices, "bf16_speedup", lambda: speedup)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("fp32", "cpu") == "fp32"


def test_speedup_is_measured() -> None:
    assert devices.bf16_speedup() > 0
