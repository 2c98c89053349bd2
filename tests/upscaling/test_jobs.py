"""Which files are read and what the results are called."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from drct.errors import OptionError
from drct.upscaling import UpscaleOptions
from drct.upscaling.jobs import plan_jobs
from drct.upscaling.manifest import Manifest, Stamp, Work


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/{a.jpg, b.PNG, notes.txt, .hidden.png, sub/{c.webp, deep/d.tif}, .git/e.png}; the working folder is above it."""
    for name in ("a.jpg", "b.PNG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.tif", ".git/e.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str, **options: object) -> dict[str, str]:
    jobs = plan_jobs(UpscaleOptions(inputs=inputs, **options), 4).jobs
    return {job.source.as_posix(): job.target.as_posix() for job in jobs}


def test_beside_the_image():
    assert names("x/a.jpg") == {"x/a.jpg": "x/a_x4.png"}
    assert names("a.b.jpg") == {"a.b.jpg": "a.b_x4.png"}
    assert names("noext") == {"noext": "noext_x4.png"}


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"scale": 2.5}, "_x2.5"),
        ({"scale": 3}, "_x3"),
        ({"scale": 0.5}, "_x0.5"),
        ({"width": 1920, "height": 1080}, "_1920x1080"),
        ({"width": 1920}, "_w1920"),
        ({"height": 1080}, "_h1080"),
        ({}, "_x4"),
    ],
)
def test_the_size_stands_in_the_name(options, label):
    assert names("a.jpg", **options) == {"a.jpg": f"a{label}.png"}


@pytest.mark.parametrize(
    ("format", "source", "target"),
    [
        ("same", "a.jpeg", "a_x4.jpeg"),
        ("same", "a.WebP", "a_x4.WebP"),
        ("same", "a.gif", "a_x4.gif"),
        ("same", "a.heic", "a_x4.png"),
        ("avif", "a.png", "a_x4.avif"),
        ("same", "a", "a_x4.png"),
        ("jpg", "a.png", "a_x4.jpg"),
        ("webp", "a.png", "a_x4.webp"),
        ("tiff", "a.png", "a_x4.tiff"),
        ("png", "a.tif", "a_x4.png"),
    ],
)
def test_the_format_stands_in_the_name(format, source, target):
    assert names(source, format=format) == {source: target}


def test_same_format_that_is_not_written_is_told():
    (job,) = plan_jobs(UpscaleOptions(inputs=("a.heic",), format="same"), 4).jobs
    assert job.notices == ("HEIC is not written: the result is a PNG",)


def test_one_stem_twice_keeps_the_old_suffix():
    assert names("a.jpg", "a.png", "b.png") == {"a.jpg": "a.jpg_x4.png", "a.png": "a.png_x4.png", "b.png": "b_x4.png"}
    assert names("a.jpg", "x/a.jpg") == {"a.jpg": "a_x4.png", "x/a.jpg": "x/a_x4.png"}
    assert names("a.jpg", "a.png", format="same") == {"a.jpg": "a_x4.jpg", "a.png": "a_x4.png"}


def test_a_longer_name_that_another_input_has_anyway(tree):
    found = names("photo.jpg", "photo.png", "photo.jpg.webp")
    assert found.pop("photo.png") == "photo.png_x4.png"
    assert all(target.startswith(f"{source}~") for source, target in found.items())
    assert len(set(found.values())) == 2


def test_names_that_differ_in_case_or_in_how_accents_are_written_are_one_name(tree):
    assert names("a.jpg", "A.png") == {"a.jpg": "a.jpg_x4.png", "A.png": "A.png_x4.png"}
    for one, two in (("a.png", "A.png"), ("stra\u00dfe.png", "STRASSE.png"), ("\u00fc.png", "u\u0308.png")):
        found = names(one, two, "b.png", output="out")
        assert len({unicodedata.normalize("NFC", target.casefold()) for target in found.values()}) == 3
        assert found["b.png"] == "out/b_x4.png"
        assert all(target.startswith(f"out/{source}~") for source, target in found.items() if source != "b.png")
    # but an input is only in the way where the file system takes both for one
    assert names("a.png", "A_X4.png") == {"a.png": "a_x4.png", "A_X4.png": "A_X4_x4.png"}


def test_the_same_file_twice_is_one_job(tree):
    assert len(names("photos/a.jpg", "photos/sub/../a.jpg", "photos")) == 2


def test_animations_may_stay_in_their_format_and_pyramids_are_tiffs():
    for name in ("a.gif", "a.webp", "a.tif"):
        (job,) = plan_jobs(UpscaleOptions(inputs=(name,)), 4).jobs
        assert job.full_target is not None
        assert (job.target.name, job.full_target.stem, job.full_target.suffix[:4]) == ("a_x4.png", "a_x4", f".{name[2:5]}")
        (job,) = plan_jobs(UpscaleOptions(inputs=(name,), pyramid=True), 4).jobs
        assert (job.target.name, job.full_target) == ("a_x4.tiff", None)


def test_floats_may_stay_tiff():
    (job,) = plan_jobs(UpscaleOptions(inputs=("a.tif",)), 4).jobs
    assert (job.target.name, job.full_target and job.full_target.name) == ("a_x4.png", "a_x4.tiff")
    (job,) = plan_jobs(UpscaleOptions(inputs=("a.tif",), format="png"), 4).jobs
    assert job.full_target is None


def test_output_file_and_output_folder(tree):
    assert names("photos/a.jpg", output="out.png") == {"photos/a.jpg": "out.png"}
    assert names("photos/a.jpg", output="new/deep/out.jpeg") == {"photos/a.jpg": "new/deep/out.jpeg"}
    assert names("photos/a.jpg", output="out") == {"photos/a.jpg": "out/a_x4.png"}
    assert names("photos/a.jpg", output="out.png/") == {"photos/a.jpg": "out.png/a_x4.png"}
    os.mkdir("v1.png")
    assert names("photos/a.jpg", output="v1.png") == {"photos/a.jpg": "v1.png/a_x4.png"}
    assert names("photos/a.jpg", "photos/b.PNG", output="out") == {"photos/a.jpg": "out/a_x4.png", "photos/b.PNG": "out/b_x4.png"}


@pytest.mark.parametrize(
    ("inputs", "output", "options", "message"),
    [
        (("photos/a.jpg", "photos/b.PNG"), "out.png", {}, "several files"),
        (("photos",), "out.png", {}, "several files"),
        (("photos",), "-", {}, "not written to a pipe"),
        (("photos",), "out.mp4", {}, "several files"),
        (("photos/a.jpg", "photos/b.PNG"), "photos/notes.txt", {}, "is a file"),
        (("photos/a.jpg",), "photos/.hidden", {}, "is a file whose name has no suffix of an image: use .png, .*or a folder"),
        (("a.mp4",), "photos/.hidden", {}, "is a file whose name has no suffix of a video: use .mp4, .*or a folder"),
        (("photos/a.jpg",), "photos/a.jpg/", {}, "photos/a.jpg is a file: leave out the / at its end"),
        (("photos/a.jpg",), "photos/.hidden/", {}, "whose name has no suffix of an image"),
        (("photos/a.jpg",), "pipe", {}, "output pipe is no file: results are not written to a pipe"),
        (("photos",), "pipe", {}, "output pipe is no file: results are not written to a pipe"),
        (("photos/a.jpg",), "out.bmp", {}, "suffix that is not written"),
        (("photos/a.jpg",), "out.heic", {}, "suffix that is not written"),
        (("photos/a.jpg",), "out.png", {"format": "jpg"}, "leave out one"),
        (("photos/a.jpg",), "photos/a.jpg", {}, "would replace the input"),
        (("photos/a.jpg",), "photos/../photos/a.jpg", {}, "would replace the input"),
        (("photos/a.jpg", "x/a.jpg"), "out", {"format": "same"}, "would both be"),
        (("a.png", "a_x4.png"), None, {}, "would replace the input"),  # which is not there, so it is no result
    ],
)
def test_what_does_not_go_together(tree, inputs, output, options, message):
    (tree / "photos" / ".hidden").touch()
    os.mkfifo(tree / "pipe")
    with pytest.raises(OptionError, match=message):
        names(*inputs, output=output, **options)


@pytest.mark.parametrize("output", [None, "photos"])
def test_a_pattern_that_meets_the_results_of_before(tree, output):
    (tree / "photos" / "a_x4.png").write_bytes(b"x")
    (tree / "photos" / "b_x4.png").write_bytes(b"x")
    inputs = tuple(str(path) for path in sorted((tree / "photos").glob("[ab]*.*")))
    options = UpscaleOptions(inputs=inputs, output=output)
    if output:  # where a manifest knows the results, it must know these
        with pytest.raises(OptionError, match="would replace the input"):
            plan_jobs(options, 4)
        manifest = Manifest(tree / output)
        for name, source in (("a_x4.png", "a.jpg"), ("b_x4.png", "b.PNG")):
            target, stamp = tree / output / name, Stamp.of(tree / output / source)
            assert manifest.claim([(target, None)]) == [True]
            manifest.begin(target, tree / output / source, stamp, Work("{}", ()), ())
            manifest.done(target, stamp, target, Stamp.of(target), {})
        manifest.close()
    with pytest.raises(OptionError, match="would replace the input"):
        plan_jobs(options.model_copy(update={"overwrite": True}), 4)
    jobs = plan_jobs(options, 4)
    assert [job.source.name for job in jobs.jobs] == ["a.jpg", "b.PNG"]
    assert jobs.notices == (f"{inputs[1]} and 1 more inputs are left out: by name the result of {inputs[0]}",)


def test_a_link_to_an_input_is_that_input(tree):
    os.symlink(tree / "photos" / "a.jpg", tree / "link.png")
    with pytest.raises(OptionError, match="would replace the input"):
        names("photos/a.jpg", output="link.png")


def test_folders(tree):
    assert names("photos") == {"photos/a.jpg": "photos_x4/a_x4.png", "photos/b.PNG": "photos_x4/b_x4.png"}
    assert names("photos", output="out", recursive=True, scale=2) == {
        "photos/a.jpg": "out/a_x2.png",
        "photos/b.PNG": "out/b_x2.png",
        "photos/sub/c.webp": "out/sub/c_x2.png",
        "photos/sub/deep/d.tif": "out/sub/deep/d_x2.png",
    }
    assert [p.name for p in plan_jobs(UpscaleOptions(inputs=("photos",)), 4).others] == ["notes.txt"]


def test_the_folder_one_is_in(tree, monkeypatch):
    monkeypatch.chdir(tree / "photos")
    result = tree / "photos_x4"
    assert names(".") == {"a.jpg": str(result / "a_x4.png"), "b.PNG": str(result / "b_x4.png")}


def test_results_inside_of_the_input_are_no_inputs(tree):
    first = names("photos", output="photos/out", recursive=True)
    for target in first.values():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).write_bytes(b"x")
    assert names("photos", output="photos/out", recursive=True) == first


def test_tiles_of_deepzooms_are_no_inputs(tree):
    for name in ("ph/a.png", "ph/a_x2.dzi", "ph/a_x2_files/10/0_0.jpg", "ph/my_files/b.png"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    assert list(names("ph", output="ph", recursive=True, scale=2, format="dzi")) == ["ph/a.png", "ph/my_files/b.png"]


def test_names_that_cannot_be_looked_at(tree, monkeypatch):
    """Too long, or in a folder that may not be searched: reading or writing them tells of it, one by one."""
    long = "x" * 300 + ".png"
    assert list(names(long, "photos/a.jpg")) == [long, "photos/a.jpg"]
    assert names("photos/a.jpg", output=long) == {"photos/a.jpg": long}
    assert next(iter(names("photos", output="x" * 300).values())) == "x" * 300 + "/a_x4.png"
    stat = os.stat

    def locked(path, *args, **kwargs):
        if "locked" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", locked)
    assert list(names("locked/a.jpg", "photos/b.PNG", output="locked/out")) == ["locked/a.jpg", "photos/b.PNG"]


def test_a_folder_without_a_folder_above_it_needs_an_output():
    with pytest.raises(OptionError, match="/ has no folder above it for the results: give an output folder"):
        names("/")


def test_loops_of_links_end(tree):
    os.symlink(tree / "photos", tree / "photos" / "sub" / "again")
    os.symlink(tree / "photos" / "sub", tree / "photos" / "sub2")
    found = names("photos", recursive=True)
    assert len(found) == 4


def test_unreadable_folders_are_told(tree, monkeypatch):
    real = os.scandir

    def scandir(path: Path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    jobs = plan_jobs(UpscaleOptions(inputs=("photos",), recursive=True), 4)
    assert len(jobs.jobs) == 2
    assert jobs.unreadable == ((Path("photos/sub"), "photos/sub: cannot be listed (Permission denied)"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sclae": 2}, "did you mean 'scale'"),
        ({"scale": 17}, "scale is 17"),
        ({"scale": 0}, "scale is 0"),
        ({"scale": "big"}, "scale is 'big'"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 2, "width": 100}, "not both"),
        ({"tile": "large"}, "'auto', 'off' or a number"),
        ({"tile": 0}, "'auto', 'off' or a number"),
        ({"format": "bmp"}, "format is 'bmp'"),
        ({"quality": 101}, "quality is 101"),
        ({"inputs": ()}, "inputs"),
        ({"overlap": -1}, "overlap is -1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(OptionError, match=message) as caught:
        UpscaleOptions(**{"inputs": ("a.png",), **options})
    assert "\n" not in str(caught.value)


def test_missing_option():
    with pytest.raises(OptionError, match="'inputs' is missing"):
        UpscaleOptions()
