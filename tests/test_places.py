"""Where files of the user are kept."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from drct.errors import Error, OptionError
from drct.evaluation.benchmark import write_text
from drct.places import cache_folder, platform_caches, written
from drct.weights import models_folder


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRCT_CACHE", "DRCT_MODELS", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)


def test_the_environment_says_where(unset: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path / "kept"))
    assert cache_folder("test") == tmp_path / "kept" / "test"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("DRCT_CACHE", "~/mine")
    assert cache_folder("test") == tmp_path / "mine" / "test"


@pytest.mark.parametrize(("platform", "expected"), [("linux", ".cache"), ("darwin", "Library/Caches"), ("win32", "AppData/Local")])
def test_the_platform_says_where(
    unset: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert platform_caches() == tmp_path / expected
    assert cache_folder("metrics") == tmp_path / expected / "drct" / "metrics"
    assert models_folder() == tmp_path / expected / "drct" / "models"


def test_on_linux_xdg_comes_first(unset: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("metrics") == tmp_path / "drct" / "metrics"


def test_without_a_home_nothing_is_written_into_the_folder_at_hand(unset: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(OptionError, match="set DRCT_CACHE"):
        cache_folder("test")
    assert not models_folder().exists()


def test_what_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(OptionError, match=r"a\.txt cannot be written \(Not a directory\): choose another place"), written(path):
        path.write_text("x")
    with pytest.raises(Error, match=r"a\.txt cannot be written \(No space left on device\)$") as caught, written(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not isinstance(caught.value, OptionError)  # no wrong usage


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_no_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drct.imaging.replacing.part_path", lambda path: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    with pytest.raises(Error, match="No space left"):
        write_text(tmp_path / "r.md", "x" * 10)
