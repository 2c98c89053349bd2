"""Reading: every layout, and every way in which a file can be bad."""

from __future__ import annotations

import collections
import io
import os
import pickle
import threading
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from drct.errors import CheckpointError
from drct.networks import SuperResolutionNetwork
from drct.weights import export_model, load_network, read_weights, save_network, weights_sha256
from drct.weights.models import read_card
from drct.weights.save import compat_state_dict


class Malicious:
    """Creates a file when it is unpickled by an unpickler that runs code."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    "key",
    ["params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net", "weights", "netG", "weights_v3"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_keys(key: str, zipped: bool, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({key: tiny.state_dict(), "iter": 5}, path, _use_new_zipfile_serialization=zipped)
    file = read_weights(path)
    assert file.layout == key
    assert same(file.tensors, tiny.state_dict())
    assert load_network(path).options.window_size == 4


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [("params", "params_ema"), ("model", "model_ema"), ("state_dict", "state_dict_ema"), ("state_dict", "ema_state_dict")]
    + [(g, f"{g}_ema") for g in ("net_g", "netG", "model_g", "generator", "g", "weights")]
    + [("weights", "ema_weights")],
)
def test_averaged_weights_come_first(plain: str, averaged: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in tiny.state_dict().items()}
    torch.save({plain: other, averaged: tiny.state_dict()}, tmp_path / "net.pth")
    file = read_weights(tmp_path / "net.pth")
    assert file.layout == averaged
    assert same(file.tensors, tiny.state_dict())


def test_params_stand_in_for_averages(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    """As in BasicSR: published option files ask for params_ema, which a run without averages has not."""
    torch.save({"params": tiny.state_dict()}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth", key="params_ema").layout == "params"
    with pytest.raises(CheckpointError, match="no weights under 'ema'"):
        read_weights(tmp_path / "net.pth", key="ema")


def test_threads_that_read_leave_the_filters_of_warnings_alone(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    """Each holds Python's warnings back for a while; overlapping, the last would put back what another had set."""
    torch.save(tiny.state_dict(), tmp_path / "net.pth")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [load_network(tmp_path / "net.pth") for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_bare_state_dict(suffix: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = (tmp_path / "net").with_suffix(suffix)
    torch.save(collections.OrderedDict(tiny.state_dict()), path)
    file = read_weights(path)
    assert file.layout == ""
    assert same(file.tensors, tiny.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "netG.", "module.netG.", "_orig_mod.", "netG.module.", "model.", "net.", "network."])
def test_prefixes(prefix: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"params": {prefix + k: v for k, v in tiny.state_dict().items()}}, path)
    assert same(read_weights(path).tensors, tiny.state_dict())


def test_averages_by_torch(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    torch.save(torch.optim.swa_utils.AveragedModel(tiny).state_dict(), tmp_path / "net.pth")
    assert same(read_weights(tmp_path / "net.pth").tensors, tiny.state_dict())


def test_any_first_byte_of_a_safetensors_file(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    """The file begins with the length of its header: 0x80 there must not be taken for a pickle."""
    firsts = set()
    for padding in range(0, 256, 8):
        save_network(tiny, tmp_path / "net", training="x" * padding)
        firsts.add((tmp_path / "net").read_bytes()[0])
        assert same(read_weights(tmp_path / "net").tensors, tiny.state_dict())
    assert 0x80 in firsts


def test_of_a_gan_only_the_generator_is_kept(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    state = {f"netG.{k}": v for k, v in tiny.state_dict().items()} | {"netD.conv0.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "gan.pth")
    assert same(read_weights(tmp_path / "gan.pth").tensors, tiny.state_dict())


def test_averaged_weights_come_first_and_key_overrides(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    ema = {k: v + 1 for k, v in tiny.state_dict().items()}
    torch.save({"params": tiny.state_dict(), "params_ema": ema}, path)
    assert same(read_weights(path).tensors, ema)
    assert same(read_weights(path, key="params").tensors, tiny.state_dict())
    with pytest.raises(CheckpointError, match=r"no weights under 'param' \(did you mean 'params'\?\); it has params, params_ema"):
        read_weights(path, key="param")


def test_an_empty_average_is_passed_over(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    torch.save({"params_ema": {}, "params": tiny.state_dict()}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").layout == "params"


def test_unknown_keys_are_named(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    other = {name: tensor + 1 for name, tensor in tiny.state_dict().items()}
    torch.save({"weights_v3": tiny.state_dict(), "weights_v4": other}, path)
    with pytest.raises(
        CheckpointError, match=r"weights under weights_v3, weights_v4: say which by key \(drct export .*net\.pth --key"
    ):
        read_weights(path)
    assert same(read_weights(path, key="weights_v4").tensors, other)
    target = export_model(path, "safetensors", tmp_path / "one.safetensors", key="weights_v4")
    assert same(read_weights(target).tensors, other)


@pytest.mark.parametrize(
    ("layout", "beside"),
    [
        ("model.state_dict", {}),
        ("mine.weights_v3", {}),
        ("model.params_ema", {"model": {"params": {"x": torch.zeros(1)}}}),
        ("net_g.state_dict", {"net_d": {"state_dict": {"x": torch.zeros(1)}}}),
        ("model.state_dict", {"scaler": {"scale": torch.ones(1)}}),
    ],
)
def test_a_dictionary_within_one(layout: str, beside: dict[str, Any], tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    outer, inner = layout.split(".")
    torch.save(beside | {outer: beside.get(outer, {}) | {inner: tiny.state_dict()}}, tmp_path / "net.pth")
    for key in (None, layout):
        file = read_weights(tmp_path / "net.pth", key=key)
        assert file.layout == layout
        assert same(file.tensors, tiny.state_dict())


@pytest.mark.parametrize(("g", "d"), [("net_g", "net_d"), ("netG", "netD"), ("generator", "discriminator")])
def test_the_generator_is_taken_from_beside_its_discriminator(g: str, d: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    torch.save({d: {"conv0.weight": torch.zeros(3)}, g: tiny.state_dict()}, tmp_path / "gan.pth")
    assert same(read_weights(tmp_path / "gan.pth").tensors, tiny.state_dict())


@pytest.mark.parametrize("key", ["weights", "net_g", "generator", "weights_ema", "model_g_ema"])
def test_tensors_win_over_keys_that_may_mean_something_else(key: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    """Say, the weights of losses beside a bare state dict."""
    torch.save(tiny.state_dict() | {key: {"l1": torch.ones(1)}}, tmp_path / "net.pth")
    file = read_weights(tmp_path / "net.pth")
    assert file.layout == ""
    assert same(file.tensors, tiny.state_dict())
    torch.save({"epoch": torch.tensor(3), key: {"l1": torch.ones(1)}, "params": tiny.state_dict()}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").layout == "params"


@pytest.mark.parametrize(
    ("layout", "beside"),
    [
        ("best", {"discriminator": {"state_dict": {"x": torch.zeros(1)}}}),
        ("best", {"net_d": {"x": torch.zeros(1)}}),
        ("generator.params", {"discriminator": {"params_ema": {"x": torch.zeros(1)}}}),
        ("model.mine", {"model": {"net_d_ema": {"x": torch.zeros(1)}}}),
        ("best", {"optimizer_g": {"params": {"x": torch.zeros(1)}}, "scheduler": {"x": torch.zeros(1)}}),
        ("best", {"state": {0: {"exp_avg": torch.zeros(1)}}}),
        ("state", {"optim": {"state": {"exp_avg": torch.zeros(1)}}}),
    ],
)
def test_what_is_no_generator_is_passed_over(
    layout: str, beside: dict[str, Any], tiny: SuperResolutionNetwork, tmp_path: Path
) -> None:
    outer, _, inner = layout.partition(".")
    own = beside.get(outer, {}) | {inner: tiny.state_dict()} if inner else tiny.state_dict()
    torch.save(beside | {outer: own}, tmp_path / "net.pth")
    file = read_weights(tmp_path / "net.pth")
    assert file.layout == layout
    assert same(file.tensors, tiny.state_dict())


@pytest.mark.parametrize(
    ("content", "listed"),
    [
        ({"foo": {"x": torch.zeros(1)}, "bar": {"params_ema": {"x": torch.ones(1)}}}, "foo, bar.params_ema"),
        ({"model": {"a": {"x": torch.zeros(1)}, "b": {"x": torch.ones(1)}}}, "model.a, model.b"),
    ],
)
def test_only_the_user_can_choose(content: dict[str, Any], listed: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=rf"weights under {listed}: say which by key \(drct export .*net\.pth --key"):
        read_weights(tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth", key=listed.split(", ")[1]).tensors == {"x": torch.ones(1)}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": []}, "state.0"),
        ({"discriminator": {"x": torch.zeros(1)}}, "discriminator"),
    ],
)
def test_a_file_without_a_generator(content: dict[str, Any], place: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=rf"holds no weights of a generator, only {place}: .*by key \(drct export"):
        read_weights(tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth", key=place).layout == place


def test_buffers_are_told_from_weights(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    torch.save({"params_ema": compat_state_dict(tiny)}, tmp_path / "net.pth")
    file = read_weights(tmp_path / "net.pth")
    assert same(file.tensors, tiny.state_dict())
    assert len(file.buffers) == 2 * 5 + 2 * 2


def test_foreign_safetensors(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file({k: v.half() for k, v in tiny.state_dict().items()}, path, metadata={"format": "pt", "sha256": "of something else"})
    assert read_weights(path).dtype == torch.float16
    network = load_network(path)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert not network.training


def test_the_name_does_not_decide_what_a_file_is(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    save_network(tiny, tmp_path / "really_safetensors.pth")
    torch.save(tiny.state_dict(), tmp_path / "really_torch.safetensors")
    for path in tmp_path.iterdir():
        assert same(read_weights(path).tensors, tiny.state_dict())


@pytest.mark.parametrize("inside", ["alone", "protocol 4", "zip", "legacy"])
def test_code_is_refused_and_not_run(inside: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "net.pth"
    payload = Malicious(victim)
    if inside in ("zip", "legacy"):
        torch.save({"params": tiny.state_dict(), "x": payload}, path, _use_new_zipfile_serialization=inside == "zip")
    else:
        path.write_bytes(pickle.dumps(payload, protocol=4 if inside == "protocol 4" else 2))
    culprit = "" if inside == "protocol 4" else r" \((posix|nt)\.mkdir\)"
    with pytest.raises(CheckpointError, match=rf"net\.pth was refused: .*{culprit}, and reading it could run code") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not victim.exists()
    # the file is a real danger: an unpickler that trusts it runs the code
    torch.load(path, weights_only=False) if inside in ("zip", "legacy") else pickle.loads(path.read_bytes())
    assert victim.exists()


def test_a_pickled_network_is_refused(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    torch.save(tiny, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"was refused: .*\(drct\.networks"):
        read_weights(tmp_path / "net.pth")


def bytes_of(network: SuperResolutionNetwork, kind: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 9, 100, 0.3, 0.9, 0.999])
def test_truncated(kind: str, kept: float, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    if kind == "safetensors":
        save_network(tiny, path)
        content = path.read_bytes()
    else:
        content = bytes_of(tiny, kind)
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"net\.pth is (empty|no weight file|truncated|damaged)") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text", b"these are no weights\n"),
        ("html", b"<!DOCTYPE html><html><body>quota exceeded</body></html>"),
        ("png", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        ("zeros", bytes(1000)),
        ("zip", b"PK\x03\x04" + bytes(1000)),
        ("pickle", pickle.dumps([1, 2, 3])),
        ("brace", b"12345678{not json"),
        ("huge header", (1 << 60).to_bytes(8, "little") + b"{}"),
        ("old pickle", pickle.dumps({"a": 1}, protocol=0)),
        ("stack", b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."),
    ],
)
def test_other_files(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.pth") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list, not a dictionary of weights"),
        (torch.zeros(2), "holds a Tensor, not a dictionary of weights"),
        ({"iter": 5}, "holds no weights"),
        ({"params": {}}, "holds no weights"),
        ({"w": torch.zeros(2, 2).to_sparse()}, r"sparse or quantized tensor \(w\)"),
    ],
)
def test_no_weights(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_random_damage_is_an_error_or_nothing(kind: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    """Whatever bytes change, the file loads or is refused in one line, for loading and for the list of models."""
    path = tmp_path / "net.pth"
    if kind == "safetensors":
        save_network(tiny, path)
    else:
        path.write_bytes(bytes_of(tiny, kind))
    whole = path.read_bytes()
    random = Random(0)
    refusals = []
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(random.choice([1, 2, 20])):
            # names and structure stand at both ends of the files
            place = random.choice([random.randrange(len(content)), random.randrange(3000), -1 - random.randrange(3000)])
            content[place] = random.randrange(256)
        path.write_bytes(content)
        read_card(path)
        try:
            load_network(path)
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    for message in refusals:
        assert str(path) in message
        assert message.isprintable()
        assert len(message) < 600


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist"):
        read_weights(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(tmp_path)


def test_a_flipped_bit_in_our_own_file_is_noticed(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_network(tiny, path)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its weights no longer match the sha256"):
        read_weights(path)


def test_hash_depends_on_names_types_shapes_and_values_only() -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.ones(1)
    known = weights_sha256({"a": a, "b": b})
    assert known == weights_sha256({"b": b, "a": a.t().contiguous().t()})
    others = [{"a": a}, {"a": a, "c": b}, {"a": a.half(), "b": b}, {"a": a.view(3, 2), "b": b}, {"a": a + 1, "b": b}]
    assert known not in [weights_sha256(other) for other in others]
    # the definition, spelled out
    import hashlib

    text = b"a F32 2x3\n" + a.numpy().astype("<f4").tobytes() + b"b F32 1\n" + b.numpy().astype("<f4").tobytes()
    assert known == hashlib.sha256(text).hexdigest()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_program_is_called_one(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(tmp_path / "net.pt"))
    with pytest.raises(CheckpointError, match=r"net\.pt is a TorchScript program, no weight file") as error:
        read_weights(tmp_path / "net.pt")
    assert "damaged" not in str(error.value)
