"""Downloads from a server on this machine that breaks off, lies, and answers with web pages."""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.server
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drct.errors import CheckpointError, DownloadError
from drct.networks import SuperResolutionNetwork
from drct.weights import ModelCard, download, find_model, list_models, load_network
from drct.weights import models as models_module
from drct.weights.cards import recorded_checksums
from drct.weights.downloads import _record


class Server(http.server.ThreadingHTTPServer):
    """Serves one file and misbehaves as told."""

    content = b""
    ranges = True  # honours Range
    from_start = False  # says that it does, and sends everything
    cut: int | None = None  # closes the connection after so many bytes of a body
    status: int | None = None  # answers with this error
    kind = "application/octet-stream"
    announce_length = True
    delay = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []  # the Range header of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/net.pth"

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what is being tested."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        time.sleep(server.delay)
        if server.status is not None:
            self.send_error(server.status)
            return
        start = 0
        if wanted and server.ranges:
            start = 0 if server.from_start else int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Type", server.kind)
        if server.announce_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut])

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def server(tiny: SuperResolutionNetwork, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    buffer = io.BytesIO()
    torch.save({"params_ema": tiny.state_dict()}, buffer)
    server.content = buffer.getvalue()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def card_of(server: Server, **known: object) -> ModelCard:
    return ModelCard(
        name="net-x2", architecture="drct", scale=2, source="https://example.org/page", url=server.url, file="net.pth",
        location="downloadable", **known,
    )  # fmt: skip


def truth(server: Server) -> dict[str, object]:
    return {"size": len(server.content), "sha256": hashlib.sha256(server.content).hexdigest()}


@pytest.fixture
def catalogue(server: Server, models: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """The server's file as the only downloadable model, of unknown size and hash."""
    card = card_of(server)
    monkeypatch.setattr(models_module, "DOWNLOADABLE", (card,))
    return card


def test_by_name_with_recorded_hash(server: Server, catalogue: ModelCard, models: Path) -> None:
    assert next(c for c in list_models() if c.name == "net-x2").state == "downloadable"
    assert load_network("NET_X2").options.window_size == 4
    assert json.loads((models / "checksums.json").read_text()) == {"net-x2": truth(server)}
    card = next(c for c in list_models() if c.name == "net-x2")
    assert (card.state, card.size, card.sha256) == ("downloaded", *truth(server).values())
    find_model("net-x2")
    assert len(server.requests) == 1  # not fetched again
    assert sorted(p.name for p in models.iterdir()) == [".checksums.json.lock", ".net.pth.lock", "checksums.json", "net.pth"]


def test_a_later_download_must_be_the_same_file(server: Server, catalogue: ModelCard, models: Path) -> None:
    find_model("net-x2").unlink()
    changed = bytearray(server.content)
    changed[-1] ^= 1
    server.content = bytes(changed)
    with pytest.raises(DownloadError, match=r"its sha256 is .*, but the card or an earlier download \(see checksums\.json\) says"):
        find_model("net-x2")
    assert not (models / "net.pth").exists()
    assert not (models / ".net.pth.part").exists()


def test_half_a_file_of_unknown_length_is_found_out(server: Server, catalogue: ModelCard, models: Path) -> None:
    whole = server.content
    server.announce_length, server.content = False, whole[: len(whole) // 2]
    with pytest.raises(
        DownloadError, match=rf"the {len(server.content)} bytes that arrived are only a part of the file, or damaged"
    ):
        find_model("net-x2")
    assert not (models / "checksums.json").exists()
    server.content = whole
    assert find_model("net-x2").read_bytes() == whole


def test_progress(server: Server, models: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    download(card_of(server, **truth(server)), progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (len(server.content), len(server.content))


def test_a_break_is_resumed_at_once(server: Server, models: Path) -> None:
    server.cut = len(server.content) // 3 + 1
    path = download(card_of(server, **truth(server)))
    assert path.read_bytes() == server.content
    assert server.requests == [None, f"bytes={server.cut}-", f"bytes={2 * server.cut}-"]


def test_a_later_call_goes_on_where_the_last_one_stopped(server: Server, models: Path) -> None:
    (models / ".net.pth.part").write_bytes(server.content[:1000])
    assert download(card_of(server)).read_bytes() == server.content
    assert server.requests == ["bytes=1000-"]


def test_without_range_support_it_starts_again(server: Server, models: Path) -> None:
    server.ranges = False
    (models / ".net.pth.part").write_bytes(b"x" * 1000)
    assert download(card_of(server, **truth(server))).read_bytes() == server.content


def test_a_partial_answer_from_another_place_than_asked_for_starts_again(server: Server, models: Path) -> None:
    server.from_start = True
    (models / ".net.pth.part").write_bytes(server.content[:1000])
    assert download(card_of(server)).read_bytes() == server.content


def test_a_complete_part_needs_no_request(server: Server, models: Path) -> None:
    (models / ".net.pth.part").write_bytes(server.content)
    assert download(card_of(server, **truth(server))).read_bytes() == server.content
    assert server.requests == []


@pytest.mark.parametrize("known", [True, False])
def test_a_part_that_is_too_long_starts_again(known: bool, server: Server, models: Path) -> None:
    (models / ".net.pth.part").write_bytes(server.content + b"more")
    assert download(card_of(server, **(truth(server) if known else {}))).read_bytes() == server.content


def test_a_server_that_stops_giving(server: Server, models: Path) -> None:
    server.cut = 0
    (models / ".net.pth.part").write_bytes(server.content[:1000])
    with pytest.raises(DownloadError, match=r"the connection broke after 1000 of \d+ bytes; the next attempt goes on from there"):
        download(card_of(server))
    assert (models / ".net.pth.part").stat().st_size == 1000
    assert not (models / "net.pth").exists()


def test_unknown_length(server: Server, models: Path) -> None:
    server.announce_length = False
    assert download(card_of(server)).read_bytes() == server.content


def test_truncated_with_unknown_length_is_noticed_by_size(server: Server, models: Path) -> None:
    server.announce_length, server.cut, server.ranges = False, 500, False
    with pytest.raises(DownloadError, match=r"500 of \d+ bytes"):
        download(card_of(server, **truth(server)))
    assert not (models / "net.pth").exists()


@pytest.mark.parametrize(
    ("known", "message"),
    [({"size": 7}, "the server offers .* bytes, but the file should have 7"), ({"sha256": "0" * 64}, "its sha256 is .* says 0000")],
)
def test_not_the_announced_file(known: dict, message: str, server: Server, models: Path) -> None:
    with pytest.raises(
        DownloadError, match=f"model 'net-x2' was not downloaded: {message}.*; get it from https://example.org/page"
    ):
        download(card_of(server, **known))
    assert [p.name for p in models.iterdir()] == [".net.pth.lock"]


def test_a_web_page_instead_of_the_file(server: Server, models: Path) -> None:
    server.content, server.kind = b"<html>Google Drive can't scan this file for viruses</html>", "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match=r"sent a web page instead of the file .* get it from https://example\.org/page"):
        download(card_of(server))
    server.kind = "application/octet-stream"
    with pytest.raises(DownloadError, match="what arrived is no weight file"):
        download(card_of(server))
    assert [p.name for p in models.iterdir()] == [".net.pth.lock"]


@pytest.mark.parametrize("status", [404, 403, 500])
def test_errors_of_the_server(status: int, server: Server, models: Path) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=rf"could not be downloaded from http://127.* \(the server answered {status}") as error:
        download(card_of(server))
    assert "\n" not in str(error.value)


def test_no_answer(server: Server, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drct.weights.downloads.TIMEOUT", 0.2)
    server.delay = 1.0
    with pytest.raises(DownloadError, match="is this machine online"):
        download(card_of(server))


def test_offline(models: Path, server: Server) -> None:
    card = card_of(server).model_copy(update={"url": "http://127.0.0.1:9/net.pth"})
    with pytest.raises(DownloadError, match="Connection refused; is this machine online"):
        download(card)


def test_name_that_does_not_resolve(models: Path, server: Server) -> None:
    card = card_of(server).model_copy(update={"url": "http://no-such-host.invalid/net.pth"})
    with pytest.raises(DownloadError, match=r"could not be downloaded from http://no-such-host\.invalid"):
        download(card)


def test_models_without_an_address(models: Path) -> None:
    with pytest.raises(DownloadError, match=r"no direct address: get it from https://drive.* put it at .*Real-DRCT-GAN_X4\.pth"):
        load_network("real-drct-gan-x4")


def test_downloads_can_be_forbidden(server: Server, catalogue: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"downloads are off: get it from https://example\.org/page and put it at .*net\.pth"):
        find_model("net-x2", download=False)
    monkeypatch.setenv("DRCT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="downloads are off by DRCT_OFFLINE: "):
        find_model("net-x2")
    assert server.requests == []


def test_offline_0_allows_downloads(server: Server, catalogue: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCT_OFFLINE", "0")
    assert find_model("net-x2").read_bytes() == server.content


def test_unwritable_models_folder(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match=r"file.models cannot be written .*: set DRCT_MODELS to another folder"):
        download(card_of(server), folder=tmp_path / "file" / "models")


def test_damaged_record(server: Server, catalogue: ModelCard, models: Path) -> None:
    (models / "checksums.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"checksums\.json is damaged: delete it"):
        find_model("net-x2")


def test_those_who_start_together_download_once(server: Server, models: Path) -> None:
    """As the processes of one training run do; a lock on a file also keeps threads apart."""
    server.delay = 0.3
    card = card_of(server, **truth(server))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(card), range(4)))
    assert set(paths) == {models / "net.pth"}
    assert len(server.requests) == 1
    assert paths[0].read_bytes() == server.content


def test_models_that_come_together_are_all_recorded(tmp_path: Path) -> None:
    cards = [ModelCard(name=f"model-{i}", file=f"{i}.pth") for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda card: _record(tmp_path, card, 1, "0"), cards))
    assert recorded_checksums(tmp_path).keys() == {card.name for card in cards}
