"""The C kernels against the formulas, values and gradients."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from drct import engine
from drct.engine import native
from drct.engine.accelerate import accelerate
from drct.engine.native import build as building
from drct.engine.native.build import FOLDER, compiler_command, find_compiler, kernels_folder, library_or_reason, reason_against
from drct.errors import DeviceError, OptionError
from drct.networks import SuperResolutionNetwork, create_network
from drct.networks.cost import count_cost
from drct.networks.window_attention import WindowAttention, relative_position_index, window_partition, window_reverse

Build = Callable[..., SuperResolutionNetwork]


@pytest.fixture
def fresh() -> Iterator[None]:
    """Libraries are looked for anew."""
    library_or_reason.cache_clear()
    yield
    library_or_reason.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    if reason := native.available():
        pytest.skip(reason)


def plain(qkv: torch.Tensor, table: torch.Tensor, window: int, shift: int, scale: float) -> torch.Tensor:
    """Attention written out with an explicit softmax, from the masks and the index of the networks."""
    heads = table.shape[1]
    attn = WindowAttention(qkv.shape[-1] // 3, window, heads, shift)
    bias = table[attn.relative_position_index].permute(2, 0, 1)
    x = window_partition(qkv.roll((-shift, -shift), (1, 2)), window)
    b, rows, columns, n, _ = x.shape
    q, k, v = x.view(b, rows, columns, n, 3, heads, -1).permute(4, 0, 1, 2, 5, 3, 6)
    scores = q @ k.transpose(-1, -2) * scale + bias
    if shift:
        kind = torch.zeros(rows, columns, dtype=torch.long)
        kind[:, -1] += 1
        kind[-1] += 2
        scores = scores + attn.masks[kind][None, :, :, None]
    out = (scores.softmax(-1) @ v).transpose(3, 4).reshape(b, rows, columns, n, -1)
    return window_reverse(out, window).roll((shift, shift), (1, 2))


@pytest.mark.parametrize("size", [1, 8], ids=["scores near zero", "scores far from zero"])
@pytest.mark.parametrize(
    ("window", "heads", "head_dim", "shift"), [(16, 3, 16, 0), (16, 2, 53, 8), (8, 2, 30, 4), (8, 1, 122, 0), (8, 2, 5, 4)]
)
def test_values_and_gradients(window: int, heads: int, head_dim: int, shift: int, size: float) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 2 * window, 3 * window, 3 * heads * head_dim)
    qkv = qkv.view(2, 2 * window, 3 * window, 3, -1).mul(torch.tensor([size, size, 1.0])[:, None]).flatten(3).requires_grad_()
    table = torch.randn((2 * window - 1) ** 2, heads, requires_grad=True)
    scale = head_dim**-0.5
    expected = plain(qkv, table, window, shift, scale)
    out = native.window_attention(qkv, table, relative_position_index(window), window, shift, scale)
    assert (out - expected).abs().max() < 1e-5 * size**2
    dout = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, (qkv, table), dout), torch.autograd.grad(expected, (qkv, table), dout), strict=True
    ):
        assert (ours - theirs).abs().max() < 1e-5 * size**2 * theirs.abs().max()


def test_what_is_no_number_is_not_hidden() -> None:
    """The guard of the training loop finds a step that went wrong by what comes out of the network."""
    qkv = torch.randn(1, 8, 8, 3 * 16)
    qkv[0, 2, 3, 5] = math.nan  # of a query
    out = native.window_attention_forward(qkv, torch.zeros(1, 64, 64), 1, 8, 0, 1.0)
    assert out[0, 2, 3].isnan().all()
    assert torch.isfinite(out).sum() == out.numel() - 16


@pytest.mark.parametrize("head_dim", [16, 53])
def test_bfloat16_maps(head_dim: int) -> None:
    """Values and gradients stay within the precision of bfloat16 (8 bits) of those computed in float32."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 32, 16, 3 * 2 * head_dim).bfloat16()
    table, dout = torch.randn(31**2, 2), torch.randn(1, 32, 16, 2 * head_dim).bfloat16()

    def both(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, t = x.clone().requires_grad_(), table.clone().requires_grad_()
        out = native.window_attention(x, t, relative_position_index(16), 16, 8, head_dim**-0.5)
        return out, *torch.autograd.grad(out, (x, t), dout.to(out.dtype))

    for exact, rounded in zip(both(qkv.float()), both(qkv), strict=True):
        assert (exact - rounded.float()).norm() < 2**-8 * exact.norm()


def test_extreme_scores_stay_finite() -> None:
    qkv = 100 * torch.randn(1, 8, 8, 3 * 16)
    out = native.window_attention_forward(qkv, torch.zeros(1, 64, 64), 1, 8, 0, 1.0)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", ["drct_light", "swinir_light", "hat_s"])
def test_accelerated_network_leaves_to_torch_what_kernels_do_not_take(name: str) -> None:
    options = {"embed_dim": 32, "depths": [1], "num_heads": [2], "window_size": 8}
    network = create_network(name, scale=2, **options).eval()
    with torch.no_grad():
        x = torch.rand(1, 3, 16, 16)
        expected = network(x)
        accelerate(network)
        assert network(x[:0]).shape == (0, 3, 32, 32)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(x[:0]).shape == (0, 3, 32, 32)
        with torch.autocast("cpu", torch.float16):
            assert (network(x) - expected).abs().max() < 0.02
        assert (network.double()(x.double()) - expected).abs().max() < 1e-5
    assert count_cost(network.float(), 16, 16).multiply_adds > 0


@pytest.mark.parametrize(("name", "blocks"), [("drct_light", 10), ("swinir_light", 4), ("hat_s", 4)])
def test_accelerated_network_has_the_same_values_and_gradients(name: str, blocks: int) -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8}
    options |= {"gc": 16, "depths": [1, 1]} if name == "drct_light" else {}
    plain_net, fast_net = (create_network(name, scale=2, **options) for _ in range(2))
    fast_net.load_state_dict(plain_net.state_dict())
    assert f"native window attention in {blocks} blocks" in accelerate(fast_net)
    x, results = torch.rand(2, 3, 24, 16), []
    for network in (plain_net, fast_net):
        torch.manual_seed(5)  # of stochastic depth
        results.append(network(x))
        results[-1].square().mean().backward()
    a, b = results
    assert (a - b).abs().max() < 1e-5
    for (parameter, p), q in zip(plain_net.named_parameters(), fast_net.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).abs().max() <= 1e-4 * p.grad.abs().max() + 1e-8, parameter


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and the plain path for whoever does not insist."""
    (tmp_path / "taken").write_text("a file where a folder should be")
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path / "taken"))
    library_or_reason.cache_clear()
    try:
        reason = native.available()
        assert reason is not None
        assert "could not be built in" in reason
        assert "\n" not in reason
    finally:
        library_or_reason.cache_clear()


def test_a_compiler_that_fails_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/calls\necho no room for this >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path / "cache"))
    library_or_reason.cache_clear()
    try:
        reasons = [native.gelu_available() for _ in range(3)]
        assert "no room for this" in (reasons[0] or "")
        assert reasons == [reasons[0]] * 3
        assert (tmp_path / "calls").read_text() == "asked\n"
    finally:
        library_or_reason.cache_clear()


@pytest.mark.parametrize("packed", ["left out", "archive"])
def test_an_application_packed_without_the_sources_takes_the_plain_path(
    packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    """Left out by a packer, or behind the path of a file."""
    (tmp_path / "archive").write_bytes(b"PK")
    monkeypatch.setattr(building, "FOLDER", tmp_path / packed / "native")
    reason = native.available()
    assert reason is not None
    assert reason.startswith(f"native kernels: {tmp_path / packed / 'native'}")
    assert "cannot be read (No" in reason
    network = create_network("drct", scale=2, embed_dim=8, gc=4, depths=[1], num_heads=[2], window_size=4).eval()
    image = torch.rand(1, 3, 8, 9)
    with torch.inference_mode():
        assert (engine.compile(network, device="cpu")(image) - network(image)).abs().max() < 1e-4


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_folded_groups_draw_and_learn_as_the_network_does(rate: float) -> None:
    """The last layer of a block folded into the 1x1 convolution: same values, gradients and dropped branches."""
    torch.manual_seed(0)
    options = {"embed_dim": 24, "gc": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 8, "drop_path_rate": rate}
    network = create_network("drct", scale=2, **options).train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, results = torch.rand(4, 3, 16, 8), []
    for fast in (False, True):
        if fast:
            accelerate(network)
        torch.manual_seed(3)
        y = network(x)
        results.append([y.detach(), *torch.autograd.grad(y.square().mean(), list(network.parameters()))])
    for plain_one, folded in zip(*results, strict=True):
        assert (plain_one - folded).abs().max() <= 1e-4 * plain_one.abs().max() + 1e-7


@pytest.mark.skipif(find_compiler() is None, reason="no compiler")
@pytest.mark.parametrize("source", sorted(path.name for path in FOLDER.glob("*.c")))
def test_every_kernel_can_be_built(source: str) -> None:
    """One that cannot is done without, which nobody would notice but for the time it takes."""
    assert reason_against(source) is None


@pytest.mark.parametrize("count", [1, 7, 16, 1003])
def test_gelu(count: int) -> None:
    x = torch.cat([torch.linspace(-12, 12, count - count // 2), torch.linspace(-1e-3, 1e-3, count // 2)])
    wanted = torch.nn.functional.gelu(x.double())
    y = native.gelu_(x.clone())
    assert ((y - wanted).abs() <= 2e-7 * x.abs().clamp_min(1)).all()


def test_gelu_passes_on_what_is_not_a_number() -> None:
    assert native.gelu_(torch.tensor([1.0, float("nan"), -1.0])).isnan().tolist() == [False, True, False]


def test_gelu_refuses_what_it_would_misread() -> None:
    for bad in (torch.zeros(4, dtype=torch.float64), torch.zeros(4, 4).t()[:2]):
        with pytest.raises(ValueError, match="contiguous float32"):
            native.gelu_(bad)


@pytest.mark.parametrize("size", [(192, 48, 48), (97, 20, 540), (1, 3, 4), (5, 7, 12), (100, 308, 32), (6, 1, 61)], ids=str)
def test_linear_layers(size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    rows, inputs, outputs = size
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    y = native.PackedLinear(weight, bias)(x)
    assert (y - torch.nn.functional.linear(x, weight, bias)).abs().max() < 1e-5 * inputs**0.5
    wide = torch.full((rows, inputs + 3), torch.nan)  # rows of a wider buffer, and a matrix that lies transposed
    wide[:, :inputs] = x
    assert torch.equal(native.PackedLinear(weight.t().contiguous().t(), bias)(wide[:, :inputs]), y)


def test_gradients_of_linear_layers() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 9, 20), torch.randn(33, 20), torch.randn(33)
    dy = torch.randn(33, 2, 5, 9).permute(1, 2, 3, 0)  # not contiguous, as it comes from convolutions
    gradients = []
    for function in (native.linear, torch.nn.functional.linear):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        gradients.append(torch.autograd.grad(function(*leaves), leaves, dy))
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    frozen = native.linear(x.requires_grad_(), weight)
    (dx,) = torch.autograd.grad(frozen, x, dy)
    assert torch.allclose(dx, dy @ weight, atol=1e-4)


def test_linear_layers_refuse_what_they_would_misread() -> None:
    layer = native.PackedLinear(torch.zeros(4, 6))
    with pytest.raises(ValueError, match="rows of 6"):
        layer(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="float32"):
        layer(torch.zeros(3, 6).double())
    with pytest.raises(ValueError, match="float64"):
        native.PackedLinear(torch.zeros(4, 6).double())


@pytest.mark.parametrize("left", [0, 5000])
def test_a_library_that_lost_its_end_is_built_again(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path))
    assert not isinstance(library_or_reason("gelu.c"), str)
    (library,) = tmp_path.glob("native/gelu-*.so")
    whole = library.read_bytes()
    library.unlink()  # the one that is loaded must stay
    library.write_bytes(whole[:left])
    library_or_reason.cache_clear()
    assert not isinstance(library_or_reason("gelu.c"), str)
    assert len(library.read_bytes()) == len(whole)


def test_the_compiler_may_have_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    compiler = compiler_command()[0]
    monkeypatch.setenv("CC", f"{compiler} -g0")
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path))
    assert compiler_command() == [compiler, "-g0"]
    assert not isinstance(library_or_reason("gelu.c"), str)


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("printf 'pas de m\\351moire\\n' >&2; exit 1", "pas de m"),
        ("printf 'In file included from simd.h:8,\\nmath.h:1: fatal error: no stubs.h\\n' >&2; exit 1", "fatal error: no stubs.h"),
        ("kill -9 $$", "ended by signal 9"),
        ("exit 0", "wrote no library"),
        ('while [ "$1" != -o ]; do shift; done; echo no library > "$2"', "the library cannot be loaded"),
    ],
)
def test_what_a_compiler_failed_at_is_told(
    does: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{does}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path / "cache"))
    reason = str(library_or_reason("gelu.c"))
    assert f"{compiler} could not build the native kernel gelu.c" in reason
    assert told in reason
    assert not list(tmp_path.glob("cache/native/*"))


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="only Linux tells")
def test_a_folder_that_forbids_programs_is_told_or_left_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC if Path(path) == tmp_path / "native" else 0))
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path))
    assert "mounted noexec: set DRCT_CACHE" in str(library_or_reason("gelu.c"))
    monkeypatch.delenv("DRCT_CACHE")
    monkeypatch.setattr("drct.engine.native.build.cache_folder", lambda name: tmp_path / name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert kernels_folder().name.startswith("drct-native-")


def test_a_compiler_that_nobody_can_make_sense_of_is_none(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setenv("CC", "gcc '")
    assert find_compiler() is None
    monkeypatch.setenv("CC", "nosuchcc")
    assert "CC is 'nosuchcc', which was not found" in str(library_or_reason("gelu.c"))


def test_without_a_home_kernels_are_kept_where_temporary_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRCT_CACHE", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = kernels_folder()
    assert folder.parent == tmp_path
    assert folder.is_dir()
    folder.chmod(0o777)
    with pytest.raises(DeviceError, match="which others can write to"):
        kernels_folder()


@pytest.mark.parametrize("name", ["drct", "swinir", "hat", "mamba_drct"])
def test_gradients_of_gradients_are_refused(name: str, build: Build) -> None:
    """By parameters, too: they are no incoming gradients, and torch would leave their part out in silence."""
    own = {"gc": 8} if "drct" in name else {"squeeze_factor": 8} if name == "hat" else {}
    windows = {} if name == "mamba_drct" else {"num_heads": [2], "window_size": 8}
    network = build(name, embed_dim=24, depths=[1], scale=2, **own, **windows).train()
    accelerate(network)
    loss = network(torch.rand(1, 3, 16, 16)).square().sum()
    parameter = next(network.parameters())
    (first,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    assert first.abs().sum() > 0
    with pytest.raises(OptionError, match="have no second derivatives"):
        torch.autograd.grad(loss, parameter, create_graph=True)
