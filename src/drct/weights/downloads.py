"""Downloading a model: resumed where it was cut off, checked, and visible under its name only when complete."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from drct.errors import CheckpointError, DownloadError
from drct.weights.cards import CHECKSUMS, ModelCard, models_folder, recorded_checksums
from drct.weights.files import file_kind, file_sha256, one_line, read_shapes

TIMEOUT = 15.0  # seconds without an answer or without data
CHUNK = 1 << 20
Progress = Callable[[int, "int | None"], None]


def download(card: ModelCard, *, folder: Path | None = None, progress: Progress | None = None, what: str = "model") -> Path:
    """Fetch the file of a downloadable model into the models folder.

    A download that was cut off goes on where it stopped. Size and sha256 are compared with the card, or with what the first
    download recorded in ``checksums.json``.

    Args:
        card: the model.
        folder: where to; default :func:`drct.weights.models_folder`.
        progress: called with bytes done and bytes in total (None if unknown).
        what: what messages call it.

    Raises:
        DownloadError: no address, no network, an error of the server, what arrived is not the announced file, or ``DRCT_OFFLINE=1``
            in the environment forbids downloads.
    """
    folder = folder or models_folder()
    target = folder / card.file
    by_hand = f"get it from {card.source} and put it at {target}"
    if os.environ.get("DRCT_OFFLINE", "") not in ("", "0"):
        raise DownloadError(f"{what} '{card.name}' is not on this machine and downloads are off by DRCT_OFFLINE: {by_hand}")
    if card.url is None:
        raise DownloadError(f"{what} '{card.name}' has no direct address: {by_hand}")
    recorded_size, recorded_sha256 = recorded_checksums(folder).get(card.name, (None, None))
    size, sha256 = card.size or recorded_size, card.sha256 or recorded_sha256
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{card.file}.lock"):
            if target.is_file():  # another process was faster
                return target
            partial = folder / f".{card.file}.part"
            try:
                with _shown(card.name, progress) as report:
                    _fetch_all(card.url, partial, size, report)
                arrived = _check(partial, size, sha256)
            except _Unusable as error:
                partial.unlink(missing_ok=True)
                raise DownloadError(f"{what} '{card.name}' was not downloaded: {error}; {by_hand}") from error
            except (OSError, http.client.HTTPException) as error:
                raise DownloadError(
                    f"{what} '{card.name}' could not be downloaded from {card.url} ({_reason(error)}); {by_hand}"
                ) from error
            _record(folder, card, *arrived)
            os.replace(partial, target)
    except OSError as error:
        raise DownloadError(f"{folder} cannot be written ({error.strerror or error}): set DRCT_MODELS to another folder") from error
    return target


class _Unusable(Exception):
    """What the server sent is not the file, and going on with it makes no sense."""


def _fetch_all(url: str, partial: Path, size: int | None, report: Progress) -> None:
    """Bring ``partial`` to its full length; after a break go on as long as each attempt brings something."""
    while True:
        before = _length(partial)
        try:
            _fetch(url, partial, size, report)
            return
        except (TimeoutError, ConnectionError, http.client.IncompleteRead):
            if _length(partial) <= before:
                raise


def _fetch(url: str, partial: Path, size: int | None, report: Progress) -> None:
    """One request for what ``partial`` still lacks."""
    done = _length(partial)
    if size is not None and done == size:
        return
    if size is not None and done > size:
        done = 0
    headers = {"User-Agent": "drct", "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and done:  # the server has no bytes beyond ours: start again
            partial.unlink()
            _fetch(url, partial, size, report)
            return
        raise
    with answer:
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise _Unusable("the server sent a web page instead of the file (a confirmation, or the drive's quota is used up)")
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            done = 0  # it sends everything from the beginning
        total = size if answer.length is None else done + answer.length
        if size is not None and total != size:
            raise _Unusable(f"the server offers {total} bytes, but the file should have {size}")
        with open(partial, "ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise ConnectionError(f"the connection broke after {done} of {total} bytes; the next attempt goes on from there")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextlib.contextmanager
def _shown(name: str, progress: Progress | None) -> Iterator[Progress]:
    """The caller's ``progress``; without one, a bar on the terminal, if there is one."""
    if progress is not None:
        yield progress
        return
    if sys.stderr is None or not sys.stderr.isatty():  # None: closed
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _check(partial: Path, size: int | None, sha256: str | None) -> tuple[int, str]:
    """Size and hash of what arrived; raises :class:`_Unusable` if it is not the announced file."""
    arrived = partial.stat().st_size
    if size is not None and arrived != size:
        raise _Unusable(
            f"{arrived} bytes arrived, but the file should have {size} by the card or an earlier download (see {CHECKSUMS})"
        )
    found = file_sha256(partial)
    if sha256 is not None and found != sha256:
        raise _Unusable(f"its sha256 is {found}, but the card or an earlier download (see {CHECKSUMS}) says {sha256}")
    try:
        file_kind(partial)
    except CheckpointError:
        raise _Unusable("what arrived is no weight file") from None
    if sha256 is None:  # nothing but the file itself says whether all of it came
        try:
            read_shapes(partial)
        except CheckpointError:
            raise _Unusable(f"the {arrived} bytes that arrived are only a part of the file, or damaged: try again") from None
    return arrived, found


def _record(folder: Path, card: ModelCard, size: int, sha256: str) -> None:
    """Note size and hash of a download, so that later ones can be compared with it."""
    with locked(folder / f".{CHECKSUMS}.lock"):  # other models come at the same time
        entries = {name: {"size": s, "sha256": h} for name, (s, h) in recorded_checksums(folder).items()}
        entries[card.name] = {"size": size, "sha256": sha256}
        temporary = folder / f".{CHECKSUMS}.part"
        temporary.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
        os.replace(temporary, folder / CHECKSUMS)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process or thread at a time fetch a file; the processes of one training run all start with it.

    Args:
        path: an empty file that is only there to be locked.
    """
    with open(path, "w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases it; the empty file stays, since others may wait for it


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return f"no answer within {TIMEOUT:.0f} seconds; is this machine online?"
    if isinstance(error, urllib.error.URLError):
        return f"{getattr(error.reason, 'strerror', None) or error.reason}; is this machine online?"
    return one_line(error)
