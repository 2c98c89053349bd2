"""Models by name: bundled, local, downloadable; and their cards."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from drct.errors import CheckpointError, ModelNotFoundError
from drct.networks import SuperResolutionNetwork, create_network
from drct.weights import ModelCard, find_model, list_models, load_network, models_folder, read_weights, save_network, write_card
from drct.weights import models as models_module
from drct.weights.files import file_sha256
from drct.weights.models import DOWNLOADABLE, family


def only(name: str) -> ModelCard:
    (card,) = [card for card in list_models() if card.name == name]
    return card


@pytest.fixture
def bundled(tiny: SuperResolutionNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path) -> Path:
    """A package that bundles one model with a card."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    monkeypatch.setattr(models_module, "BUNDLED", folder)
    save_network(tiny, folder / "tiny-x2.safetensors", licence="CC0-1.0", training="not at all", dtype=torch.float16)
    write_card(folder / "tiny-x2.safetensors", source="here", scores={"Set5": 20.5})
    return folder


def test_dropping_in_two_files_bundles_a_model(bundled: Path, tiny: SuperResolutionNetwork) -> None:
    card = list_models()[0]
    assert (card.name, card.state, card.architecture, card.scale) == ("tiny-x2", "bundled", "drct", 2)
    assert card.parameters == sum(p.numel() for p in tiny.parameters())
    assert (card.licence, card.training, card.scores) == ("CC0-1.0", "not at all", {"Set5": 20.5})
    assert card.path is not None
    assert card.sha256 == file_sha256(card.path)
    assert card.size == card.path.stat().st_size
    assert load_network("tiny-x2").scale == 2
    assert load_network("Tiny_x2").scale == 2


def test_a_card_holds_no_places(bundled: Path) -> None:
    text = (bundled / "tiny-x2.json").read_text()
    assert str(bundled) not in text
    assert json.loads(text).keys().isdisjoint({"path", "location", "url"})


def test_every_bundled_model_is_what_its_card_says() -> None:
    for path in models_module._weight_files(models_module.BUNDLED):
        card = models_module.read_card(path, "bundled")
        network = load_network(path)
        assert card.sha256 == file_sha256(path)
        assert card.parameters == sum(p.numel() for p in network.parameters())
        assert card.scale == network.scale
        assert card.licence
        assert card.training
        assert path.with_suffix(".json").is_file()
        assert read_weights(path).dtype == torch.float16


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"scale": "four"}', '{"name": "x", "file": "y", "scale": 4, "colour": 1}', '{"scale": 0}']
)
def test_damaged_card(content: str, bundled: Path) -> None:
    (bundled / "tiny-x2.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tiny-x2\.json is no model card") as error:
        list_models()
    assert "\n" not in str(error.value)
    assert load_network("tiny-x2").scale == 2  # the weights are still there


def test_local_models(tiny: SuperResolutionNetwork, models: Path) -> None:
    save_network(tiny, models / "mine.safetensors", licence="mine", training="at night")
    torch.save({"params": tiny.state_dict()}, models / "old.pth")
    torch.save(tiny.state_dict(), models / "older.pt", _use_new_zipfile_serialization=False)
    (models / "broken.pth").write_bytes(b"PK\x03\x04")
    (models / "notes.txt").write_text("no model")
    (models / ".hidden.pth.part").write_text("no model")
    cards = {card.name: card for card in list_models() if card.location == "local"}
    assert cards.keys() == {"mine", "old", "older", "broken"}
    assert (cards["mine"].licence, cards["mine"].training) == ("mine", "at night")
    for name in ("mine", "old", "older"):
        assert (cards[name].architecture, cards[name].scale) == ("drct", 2)
        assert cards[name].parameters == sum(p.numel() for p in tiny.parameters())
        assert load_network(name).scale == 2
    assert cards["broken"].training.startswith("not usable: ")
    assert find_model("old.pth") == models / "old.pth"


def test_the_named_size_stands_in_the_card(models: Path) -> None:
    save_network(create_network("drct_light", scale=4), models / "own.safetensors")
    assert only("own").architecture == "drct_light"
    assert only("own").parameters == 1_128_196


def test_a_download_by_hand_counts(tiny: SuperResolutionNetwork, models: Path) -> None:
    torch.save({"params_ema": tiny.state_dict()}, models / "Real-DRCT-GAN_X4.pth")
    assert only("real-drct-gan-x4").state == "downloaded"
    assert find_model("real-drct-gan-x4") == models / "Real-DRCT-GAN_X4.pth"
    assert not [card for card in list_models() if card.location == "local"]


def test_of_a_family_what_is_here_goes_before_downloads(tiny: SuperResolutionNetwork, models: Path) -> None:
    assert [(scale, card.name, card.path) for scale, card in family("drct-l").items()] == [(4, "drct-l-x4", None)]
    save_network(tiny, mine := models / "DRCT_L-x4.safetensors")
    save_network(tiny, models / "drct-l-x2.safetensors")
    assert {scale: card.name for scale, card in family("drct-l").items()} == {4: mine.stem, 2: "drct-l-x2"}
    assert family("drct-l-x4") == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("drct-l-x5", r"model 'drct-l-x5' is unknown \(did you mean 'drct-l-x4'\?\); 'drct models' lists all"),
        ("DRCT-L_X44", r"did you mean 'drct-l-x4'"),
        ("nonsense", r"model 'nonsense' is unknown; 'drct models'"),
        ("auto", r"'auto' chooses a network for each picture in drct upscale and drct\.AutoUpscaler: name a model here"),
        ("DRCT_Light", "'DRCT_Light' is a family of networks: name one of drct-light-x2, drct-light-x3, drct-light-x4"),
        ("nowhere/net.pth", r"nowhere.net\.pth does not exist"),
        ("net.safetensors", r"net\.safetensors does not exist"),
        ("", "give the name of a model or a weight file"),
        ("https://x.org/net.pth", r"https://x\.org/net\.pth is an address: download the file first"),
    ],
)
def test_unknown_names(name: str, message: str, models: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        load_network(name)


@pytest.mark.parametrize("name", ["drct-light-x4", "drct-light"])
def test_bundled_models_that_are_missing_are_said_to_be(
    name: str, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an application that was packed without them."""
    monkeypatch.setattr(models_module, "BUNDLED", tmp_path / "gone")
    with pytest.raises(ModelNotFoundError, match=rf"'{name}' is unknown, and the bundled models are missing: .*gone; ") as caught:
        find_model(name)
    assert "did you mean" not in str(caught.value)


def test_a_folder_is_no_model_but_does_not_hide_one(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-x2").mkdir()
    assert find_model("tiny-x2") == bundled / "tiny-x2.safetensors"
    with pytest.raises(ModelNotFoundError, match="bundled is a folder"):
        find_model(bundled)


def test_models_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRCT_MODELS", str(tmp_path / "mine"))
    assert models_folder() == tmp_path / "mine"
    monkeypatch.delenv("DRCT_MODELS")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert models_folder() == tmp_path / "cache" / "drct" / "models"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert models_folder() == Path.home() / ".cache" / "drct" / "models"


def test_the_official_models_are_listed() -> None:
    names = {"drct-x4", "drct-l-x4", "drct-xl-x4", "real-drct-gan-mse-x4", "real-drct-gan-x4", "4xRealWebPhoto_v4_drct-l"}
    assert {card.name for card in DOWNLOADABLE} == names
    for card in DOWNLOADABLE:
        assert card.source.startswith("https://")
        assert card.url is None or card.url.startswith("https://")
        assert card.sha256 is None or re.fullmatch("[0-9a-f]{64}", card.sha256)
        assert card.architecture is not None
        network = create_network(card.architecture, scale=card.scale)
        assert card.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"steps": 4}', b"\xff", b"[" * 100_000])
def test_a_foreign_json_beside_a_local_model_stops_nothing(
    content: bytes, tiny: SuperResolutionNetwork, models: Path, bundled: Path
) -> None:
    save_network(tiny, models / "mine.safetensors", training="at night")
    (models / "mine.json").write_bytes(content)
    card = only("mine")
    assert (card.architecture, card.scale) == ("drct", 2)
    assert re.match(r".*mine\.json is no model card \(.*\); at night$", card.training)
    assert only("tiny-x2").state == "bundled"


def test_files_with_one_stem_are_told_apart_by_their_names(models: Path) -> None:
    for name in ("foo.pth", "foo.safetensors", "Foo.pth", "drct-x4.pt"):
        (models / name).write_bytes(b"PK")
    assert find_model("foo") == models / "foo.safetensors"
    for name in ("foo.pth", "foo.safetensors", "Foo.pth", "drct-x4.pt"):
        assert find_model(name) == models / name
    assert find_model("FOO.safetensors") == models / "foo.safetensors"


def test_a_models_folder_that_may_not_be_looked_at_is_empty(
    models: Path, tiny: SuperResolutionNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_network(tiny, models / "mine.safetensors")
    expected = [card.name for card in list_models() if card.name != "mine"]

    def refused(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: refused(folder) if Path(folder) == models else listdir(folder))
    assert [card.name for card in list_models()] == expected


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "DRCT_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does then
    assert list_models()
    monkeypatch.setenv("DRCT_MODELS", "~nobody_of_that_name/models")
    assert list_models()
