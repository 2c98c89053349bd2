"""Writing: what the published implementation would have written, and files that do not change by themselves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from drct.errors import CheckpointError, OptionError
from drct.networks import SuperResolutionNetwork, create_network
from drct.weights import export_compat, export_model, load_network, read_weights, save_network, weights_sha256
from drct.weights.save import compat_image_size, compat_state_dict, shift_mask, write_atomically

SMALL = {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "window_size": 8, "gc": 16}


@pytest.mark.parametrize(
    ("case", "name", "scale", "options"),
    [
        ("drct_x4", "drct", 4, {}),
        ("drct_x3", "drct", 3, {}),
        ("drct_x2", "drct", 2, {}),
        ("drct_l_x4", "drct_l", 4, {}),
        ("drct_xl_x4", "drct_xl", 4, {}),
        ("drct_small_x4", "drct", 4, SMALL),
    ],
)
def test_compat_has_as_many_entries_as_published(case: str, name: str, scale: int, options: dict, shared: Path) -> None:
    published = json.loads((shared / "reference" / "networks.json").read_text())[case]
    network = create_network(name, scale=scale, **options)
    assert len(compat_state_dict(network)) == published["keys"]
    assert len(network.state_dict()) == published["param_keys"]


@pytest.mark.parametrize(("side", "window"), [(64, 16), (64, 8), (70, 7), (12, 4), (6, 3)])
def test_shift_mask_is_that_of_swin_transformer(side: int, window: int) -> None:
    """Two pixels of a window attend to each other only if the shift did not bring them together from two sides."""
    shift = window // 2
    mask = shift_mask(side, window, shift)
    assert mask.shape == ((side // window) ** 2, window**2, window**2)
    generator = torch.Generator().manual_seed(0)
    per_row = side // window
    for _ in range(300):
        n, a, b = (int(torch.randint(size, (), generator=generator)) for size in mask.shape)
        (ya, xa), (yb, xb) = (
            ((n // per_row) * window + p // window, (n % per_row) * window + p % window) for p in (a, b)
        )  # fmt: skip
        # pixel p of the rolled map stood at (p + shift) % side; it wrapped if that is below shift
        together = (ya + shift >= side) == (yb + shift >= side) and (xa + shift >= side) == (xb + shift >= side)
        assert mask[n, a, b] == (0.0 if together else -100.0)


@pytest.mark.parametrize(("window", "side"), [(16, 64), (8, 64), (7, 70), (32, 64), (64, 128), (48, 96)])
def test_masks_are_made_for_the_published_size_where_it_fits(window: int, side: int) -> None:
    assert compat_image_size(window) == side


def test_entries_stand_where_the_published_code_has_them(tiny: SuperResolutionNetwork) -> None:
    names = list(compat_state_dict(tiny))
    block = [n.removeprefix("layers.1.swin2.") for n in names if n.startswith("layers.1.swin2.")]
    attention = ["attn.relative_position_bias_table", "attn.relative_position_index", "attn.qkv.weight"]
    assert block[:6] == ["attn_mask", "norm1.weight", "norm1.bias", *attention]
    assert "layers.1.swin3.attn_mask" not in names


def test_compat_gives_the_same_image(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    export_compat(tiny, tmp_path / "net.pth")
    x = torch.rand(1, 3, 9, 13)
    with torch.inference_mode():
        assert torch.equal(load_network(tmp_path / "net.pth")(x), tiny(x))


@pytest.mark.parametrize(
    "options",
    [
        {"head_dim": 4},
        {"block_heads": [3, 2, 2, 3, 2]},
        {"upsampler": "pixelshuffledirect"},
        {"patch_norm": False},
        {"ape": True},
        {"img_range": 255.0},
        {"qk_scale": 1.0},
    ],
)
def test_compat_refuses_what_others_cannot_rebuild(options: dict, tmp_path: Path) -> None:
    network = create_network("drct", scale=2, embed_dim=12, depths=[2], num_heads=[2], window_size=4, gc=4, **options)
    with pytest.raises(CheckpointError, match=r"other programs cannot rebuild this network: .*; export to safetensors instead"):
        export_compat(network, tmp_path / "net.pth")
    assert not list(tmp_path.iterdir())


def test_spandrel_reads_the_compatible_file(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    spandrel = pytest.importorskip("spandrel", exc_type=ImportError)
    export_compat(tiny, tmp_path / "net.pth")
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / "net.pth").model.eval()
    x = torch.rand(1, 3, 8, 16)
    with torch.inference_mode():
        assert (theirs(x) - tiny(x)).abs().max() < 1e-4


def test_the_same_network_gives_the_same_bytes(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_network(tiny, tmp_path / name, licence="l", training="t", metadata={"z": "1", "b": "2", "a": "3"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_other_programs_can_read_our_safetensors(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    save_network(tiny, tmp_path / "net.safetensors", training="two words")
    with safe_open(tmp_path / "net.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["training"] == "two words"
        assert json.loads(file.metadata()["options"])["window_size"] == 4
        assert all(torch.equal(file.get_tensor(n), t) for n, t in tiny.state_dict().items())
        assert set(file.keys()) == tiny.state_dict().keys()


def test_half_precision_is_stored_but_never_run(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    save_network(tiny, tmp_path / "half.safetensors", dtype=torch.float16)
    save_network(tiny, tmp_path / "full.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    loaded = load_network(tmp_path / "half.safetensors")
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tiny.state_dict()[name].half().float())
    assert read_weights(tmp_path / "half.safetensors").dtype == torch.float16


def test_what_half_precision_cannot_hold_is_not_written(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.conv_last.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"conv_last\.bias holds values that are not finite in torch\.float16"):
        save_network(tiny, tmp_path / "net.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", [save_network, export_compat])
def test_a_failed_write_leaves_the_old_file(writer, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.bin"
    path.write_bytes(b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"net\.bin cannot be written \(No space left on device\)"):
        writer(tiny, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.bin"]


def test_unwritable_output(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_network(tiny, tmp_path / "file" / "net.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_network(tiny, tmp_path / "folder")


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"metadata": {"epoch": 3}}, "metadata 'epoch' is 3"),
        ({"metadata": {"a": None}}, "metadata 'a' is None"),
        ({"metadata": {1: "a"}}, "metadata 1 is 'a'"),
        ({"licence": 0}, "metadata 'licence' is 0"),
        ({"training": "from caf\udce9.yml"}, r"metadata 'training' is 'from caf\\udce9\.yml'"),
    ],
)
def test_what_metadata_cannot_hold_is_refused(entries: dict, named: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"{named}, but names and values must be texts"):
        save_network(tiny, tmp_path / "net.safetensors", **entries)
    assert not list(tmp_path.iterdir())


def test_nothing_said_is_nothing_written(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    save_network(tiny, tmp_path / "none.safetensors", licence=None, training=None)
    save_network(tiny, tmp_path / "empty.safetensors")
    assert (tmp_path / "none.safetensors").read_bytes() == (tmp_path / "empty.safetensors").read_bytes()


class Compiled(torch.nn.Module):
    """Wraps a network as torch.compile does, whose import takes seconds."""

    def __init__(self, network: SuperResolutionNetwork) -> None:
        super().__init__()
        self._orig_mod = network

    def __getattr__(self, name: str):
        return super().__getattr__(name) if name == "_orig_mod" else getattr(self._orig_mod, name)


def test_compiled_networks_are_written_as_they_are(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    compiled = Compiled(tiny)
    assert save_network(compiled, tmp_path / "net.safetensors") == weights_sha256(tiny.state_dict())
    export_compat(compiled, tmp_path / "net.pth")
    for name in ("net.safetensors", "net.pth"):
        loaded = load_network(tmp_path / name).state_dict()
        assert all(torch.equal(loaded[n], tensor) for n, tensor in tiny.state_dict().items())


@pytest.mark.parametrize("writer", [save_network, export_compat])
def test_networks_that_could_not_be_loaded_are_not_written(writer, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path, number = tmp_path / "net.bin", torch.initial_seed()
    weight_norm(tiny.conv_last)
    with pytest.raises(CheckpointError, match=r"net\.bin was not written: .*not as drct has them: conv_last\.param.*weight_norm"):
        writer(tiny, path)
    remove_parametrizations(tiny.conv_last, "weight")
    writer(tiny, path)
    tiny.conv_last = torch.nn.Conv2d(64, 5, 3)
    with pytest.raises(CheckpointError, match=r"not as drct has them: conv_last\.weight, conv_last\.bias; "):
        writer(tiny, path)
    with pytest.raises(OptionError, match="network is a Conv2d, but must be a network of drct"):
        writer(tiny.conv_last, path)
    assert load_network(path).scale == 2
    assert torch.initial_seed() == number


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e5m2fnuz])
def test_weights_become_what_safetensors_holds(dtype: torch.dtype, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"dtype is {dtype}, but weights are floats: use torch.float32"):
        save_network(tiny, tmp_path / "net.safetensors", dtype=dtype)
    tiny.to(torch.float8_e5m2fnuz)
    with pytest.raises(CheckpointError, match=r"is torch\.float8_e5m2fnuz, which safetensors has not: give a dtype"):
        save_network(tiny, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_of_two_writers_one_is_told(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    save_network(tiny, path)
    before = path.read_bytes()

    def write_twice(file) -> None:
        file.write(b"half")
        with pytest.raises(CheckpointError, match=r"net\.bin cannot be written \(another process or thread is writing it\)"):
            save_network(tiny, path)
        assert path.read_bytes() == before
        file.write(b" and half")

    write_atomically(path, write_twice)
    assert path.read_bytes() == b"half and half"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "net.bin", interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_exported_as_it_is(dtype: torch.dtype, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in tiny.state_dict().items()}, source)
    export_model(source, "safetensors", target)
    before, after = load_network(source).state_dict(), load_network(target).state_dict()
    assert read_weights(target).dtype == dtype
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
