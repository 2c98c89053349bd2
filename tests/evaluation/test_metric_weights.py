"""Where metric weights come from: folder, cache, public address; and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from drct.errors import CheckpointError, DownloadError
from drct.evaluation import metric_weights
from drct.evaluation.metric_weights import ASSETS, load_metric_weights
from drct.weights import ModelCard
from drct.weights.downloads import download

NAME = "dists_weights.safetensors"
TENSORS = {"alpha": torch.rand(1, 1475, 1, 1), "beta": torch.rand(1, 1475, 1, 1)}


@pytest.fixture(autouse=True)
def metric_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DRCT_WEIGHTS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a web server on the test's folder."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}/"
        found.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def publish(folder: Path, server: str, monkeypatch: pytest.MonkeyPatch, sha256: str | None = None) -> Path:
    """Serve the weights under the hash that is announced."""
    original = folder / "weights.pt"
    torch.save({**TENSORS, "unneeded": torch.rand(5)}, original)
    announced = sha256 or hashlib.sha256(original.read_bytes()).hexdigest()
    monkeypatch.setitem(ASSETS, NAME, dataclasses.replace(ASSETS[NAME], url=server + "weights.pt", sha256=announced))
    return original


def test_a_download_is_checked_and_kept(tmp_path: Path, server: str, metric_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = publish(tmp_path, server, monkeypatch)
    assert torch.equal(load_metric_weights(NAME)["alpha"], TENSORS["alpha"])
    original.unlink()  # from now on the cache answers
    assert torch.equal(load_metric_weights(NAME)["beta"], TENSORS["beta"])
    assert load_file(metric_cache / "metrics" / NAME).keys() == TENSORS.keys()
    assert not list((metric_cache / "metrics").glob("*.pt"))


def test_an_original_of_the_same_name(tmp_path: Path, server: str, metric_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of NIQE is: what guards the weights must not wait for what guards their download."""
    save_file(TENSORS, tmp_path / NAME)
    sha256 = hashlib.sha256((tmp_path / NAME).read_bytes()).hexdigest()
    monkeypatch.setitem(ASSETS, NAME, dataclasses.replace(ASSETS[NAME], url=server + NAME, sha256=sha256))
    found: list[dict[str, torch.Tensor]] = []
    thread = threading.Thread(target=lambda: found.append(load_metric_weights(NAME)), daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert torch.equal(found[0]["alpha"], TENSORS["alpha"])


def test_offline_nothing_is_asked_for(tmp_path: Path, server: str, metric_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, server, monkeypatch)
    monkeypatch.setenv("DRCT_OFFLINE", "1")
    with pytest.raises(
        DownloadError, match=rf"metric weights '{NAME}' is not on this machine and downloads are off by DRCT_OFFLINE"
    ):
        load_metric_weights(NAME)


def test_all_who_come_at_once_get_the_weights_by_one_download(
    tmp_path: Path, server: str, metric_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, server, monkeypatch)
    fetched: list[str] = []

    def fetch(card: ModelCard, **how: Any) -> Path:
        fetched.append(card.file)
        return download(card, **how)

    monkeypatch.setattr(metric_weights, "download", fetch)
    with ThreadPoolExecutor(4) as pool:  # the locks keep threads apart as they do processes
        found = list(pool.map(load_metric_weights, [NAME] * 4))
    assert all(torch.equal(tensors["alpha"], TENSORS["alpha"]) for tensors in found)
    assert fetched == ["weights.pt"]
    assert {path.name for path in (metric_cache / "metrics").glob("[!.]*")} == {"checksums.json", NAME}


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, server: str, metric_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, server, monkeypatch)
    metric_cache.write_text("a file, where the folder belongs")
    with pytest.raises(DownloadError, match=r"dists_weights\.safetensors cannot be written .*DRCT_CACHE"):
        load_metric_weights(NAME)


def test_a_wrong_hash_is_refused(tmp_path: Path, server: str, metric_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, server, monkeypatch, sha256="0" * 64)
    with pytest.raises(DownloadError, match="sha256"):
        load_metric_weights(NAME)
    assert not [path for path in (metric_cache / "metrics").iterdir() if "weights" in path.name and path.suffix != ".lock"]


def test_neither_folder_nor_address(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, server, monkeypatch).unlink()
    monkeypatch.setenv("DRCT_WEIGHTS", str(tmp_path))
    with pytest.raises(DownloadError, match=r"dists_weights\.safetensors.*DRCT_WEIGHTS"):
        load_metric_weights(NAME)


@pytest.mark.parametrize("file", [NAME, "weights.pt"])
def test_the_local_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    if file == NAME:
        save_file(TENSORS, tmp_path / file)
    else:
        torch.save(TENSORS, tmp_path / file)
    monkeypatch.setenv("DRCT_WEIGHTS", str(tmp_path))
    assert torch.equal(load_metric_weights(NAME)["alpha"], TENSORS["alpha"])


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04broken"])
@pytest.mark.parametrize("file", [(NAME, NAME), (NAME, "weights.pt"), ("niqe_pris_params.npz", "niqe_pris_params.npz")])
def test_broken_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, file: tuple[str, str]) -> None:
    (tmp_path / file[1]).write_bytes(content)
    monkeypatch.setenv("DRCT_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match=file[1].replace(".", r"\.")):
        load_metric_weights(file[0])


def test_missing_tensors_and_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"alpha": TENSORS["alpha"], "beta": torch.rand(3)}, tmp_path / NAME)
    monkeypatch.setenv("DRCT_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="lack 'beta'"):
        load_metric_weights(NAME)
    monkeypatch.setenv("DRCT_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="not a folder"):
        load_metric_weights(NAME)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"alpha": Path("x")}, tmp_path / "weights.pt")
    monkeypatch.setenv("DRCT_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="run code"):
        load_metric_weights(NAME)


def test_addresses_and_hashes_are_well_formed() -> None:
    for asset in ASSETS.values():
        assert asset.url.startswith("https://")
        assert len(asset.sha256) == 64
        assert int(asset.sha256, 16) > 0
    for name in ("alexnet_features", "vgg16_features"):  # torchvision puts the first digits into the name
        asset = ASSETS[f"{name}.safetensors"]
        assert asset.url.endswith(f"-{asset.sha256[:8]}.pth")
