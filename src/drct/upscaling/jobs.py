"""Which files are read and what the results are called, decided before anything is computed.

* One image and ``-o`` with an image suffix: that file.
* Otherwise a folder: the one given, else beside each image; for a folder as input, ``FOLDER_x4`` beside it.
* Names are ``NAME_x4.png``; videos keep their suffix where it is one that is written, else they become ``NAME_x4.mkv``.
* Two inputs that would get one name keep their old suffix in it: ``a.jpg_x4.png``, ``a.png_x4.png``. Names that only differ in the
  case of letters are one name, since many file systems hold only one of them; where the suffix does not help, a hash does.
* A name that would be longer than file systems allow is cut, with a hash of the whole name in the place of its end.
* Results come along where ``*.png`` is given a second time: an input that has the place of another one's result is left out, unless
  results are to be replaced.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from drct.errors import OptionError
from drct.imaging import FORMATS, PictureInfo, format_of, is_image_file, writable_formats
from drct.imaging.replacing import NAME_BYTES
from drct.upscaling import manifest
from drct.upscaling.options import UpscaleOptions
from drct.upscaling.video import CONTAINERS, is_video_file, video_suffix

_NO_FILE = "is no file: results are not written to a pipe or device"
_FULL = {"tiff": ".tiff", "gif": ".gif", "webp": ".webp"}  # suffixes of what a PNG cannot hold


@dataclasses.dataclass(frozen=True)
class Job:
    """One image or video to upscale.

    Attributes:
        source: file to read.
        target: file to write.
        full_target: file to write instead if the image turns out to hold floats, several pages or frames, which the format of
            ``target`` does not; None to write ``target`` in any case.
        notices: what a user should know about the choice of names.
        root: folder for results whose manifest knows this one; None for results that lie beside their images.
    """

    source: Path
    target: Path
    full_target: Path | None = None
    notices: tuple[str, ...] = ()
    root: Path | None = None

    @property
    def is_video(self) -> bool:
        """Whether the source is a video, by its name."""
        return is_video_file(self.source)

    def target_for(self, info: PictureInfo) -> Path:
        """The file for a picture's result, which may depend on what it holds."""
        return self.full_target if self.full_target is not None and (info.depth == "float32" or info.several) else self.target

    @property
    def existing(self) -> Path | None:
        """The result, or what has one of the names that it may get, if it is already there."""
        return next((path for path in (self.target, self.full_target) if path is not None and os.path.isfile(path)), None)


@dataclasses.dataclass(frozen=True)
class Jobs:
    """What is to be done.

    Attributes:
        jobs: in the order of the inputs; files of a folder sorted by name.
        others: files in the input folders that are no images and no videos by their names, or videos without PyAV.
        unreadable: folders that could not be listed, and why.
        folders: those that were.
        notices: what a user should know about the choice of files.
    """

    jobs: tuple[Job, ...]
    others: tuple[Path, ...]
    unreadable: tuple[tuple[Path, str], ...]
    folders: tuple[Path, ...] = ()
    notices: tuple[str, ...] = ()


def plan_jobs(options: UpscaleOptions, default_scale: float) -> Jobs:
    """Find the input files and name their results.

    Args:
        options: of the run.
        default_scale: stands in the names if the options give no size.

    Raises:
        OptionError: inputs and output do not go together, two results would have one name, or a result would replace an input.
        ManifestError: the manifest of a folder for results is damaged.
    """
    label = size_label(options, default_scale)
    file_target = _file_target(options)
    beside = _Beside()
    if file_target is not None:
        return Jobs(tuple(_checked([Job(options.inputs[0], file_target)])), (), ())

    if str(options.output) == "-":
        raise OptionError(f"output '-' {_NO_FILE} (./- is a folder of this name)")
    folder = None if options.output is None else Path(options.output)
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise OptionError(f"output {_no_folder(folder, options)}")
    found: list[_Found] = []
    for source in options.inputs:
        if not os.path.isdir(source):
            found.append(_Found(source, source.parent if folder is None else folder, folder))
            continue
        # resolved, so that "." and ".." have a name
        top = source if source.name not in ("", "..") else source.resolve()
        if folder is None and not top.name:
            raise OptionError(f"{top} has no folder above it for the results: give an output folder")
        results = top.with_name(f"{top.name}{label}") if folder is None else folder
        mirrored = functools.cache(lambda parent, top=source, results=results: results / parent.relative_to(top))
        images = _walk(source, options.recursive, results, beside)
        found.extend(_Found(path, mirrored(path.parent), results) for path in images)
    jobs = list(_named(found, options, label))
    notices = [] if options.overwrite else _leave_out_results(jobs)
    return Jobs(
        *(tuple(_checked(jobs)), tuple(beside.others), tuple(beside.unreadable), tuple(beside.folders)),
        tuple(notices),
    )


def size_label(options: UpscaleOptions, default_scale: float) -> str:
    """``_x4``, ``_x2.5``, ``_1920x1080``; ``_w1920`` or ``_h1080`` where only one side was given."""
    if options.width is not None and options.height is not None:
        return f"_{options.width}x{options.height}"
    if options.width is not None:
        return f"_w{options.width}"
    if options.height is not None:
        return f"_h{options.height}"
    return f"_x{options.scale if options.scale is not None else default_scale:g}"


def _no_folder(output: Path, options: UpscaleOptions) -> str:
    """What to say of an output that would be a folder by its name, and is there as something else."""
    if not os.path.isfile(output):
        return f"{output} {_NO_FILE}"
    if _takes_several(options):
        return f"{output} is a file: a folder is needed for the results of several files"
    if _ends_as_folder(options) and (is_video_file(output) or format_of(output) is not None):
        return f"{output} is a file: leave out the {os.sep} at its end, or name a folder"
    if is_video_file(options.inputs[0]):
        return f"{output} is a file whose name has no suffix of a video: use {', '.join(CONTAINERS)}, or a folder"
    return f"{output} is a file whose name has no suffix of an image: use {_image_suffixes()}, or a folder"


def _takes_several(options: UpscaleOptions) -> bool:
    return len(options.inputs) > 1 or os.path.isdir(options.inputs[0])


def _ends_as_folder(options: UpscaleOptions) -> bool:
    return str(options.output).endswith(("/", os.sep))


def _image_suffixes() -> str:
    return ", ".join(format.suffixes[0] for format in writable_formats())


def _file_target(options: UpscaleOptions) -> Path | None:
    """The output, if it means a file."""
    if options.output is None:
        return None
    target = Path(options.output)
    named_as_file = re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,4}", target.suffix) and not _ends_as_folder(options)
    if os.path.isdir(target) or not named_as_file:
        return None
    if _takes_several(options):
        if format_of(target) is None and target.suffix.lower() not in CONTAINERS:
            return None
        raise OptionError(f"output {target} is a file name: a folder is needed for the results of several files")
    if is_video_file(options.inputs[0]):
        if target.suffix.lower() not in CONTAINERS:
            raise OptionError(f"output {target} has a suffix that is not written for videos: use {', '.join(CONTAINERS)}")
        return target
    format = format_of(target)
    if format is None or not FORMATS[format].saver:
        raise OptionError(
            f"output {target} has a suffix that is not written: use {_image_suffixes()} (or end a folder's name with /)"
        )
    wanted = {None: format, "same": format_of(options.inputs[0]), "jpg": "jpeg"}.get(options.format, options.format)
    if wanted != format:
        raise OptionError(
            f"output {target} is {format} by its name, but format {options.format} was asked for: leave out one of them"
        )
    return target


@dataclasses.dataclass(frozen=True)
class _Found:
    """An input, the folder of its result, and the folder whose manifest will know the result."""

    source: Path
    folder: Path
    root: Path | None


def _named(found: list[_Found], options: UpscaleOptions, label: str) -> Iterator[Job]:
    """Jobs with the names of their results; the same file given twice is taken once."""
    found = list({os.path.abspath(one.source): one for one in found}.values())
    targets = _apart(found, [_target(one, one.source.stem, label, options) for one in found], label, options)
    for one, target in zip(found, targets, strict=True):
        source = one.source
        notices: list[str] = []
        if is_video_file(source):
            if target.suffix != source.suffix:
                notices.append(f"{source.suffix.lstrip('.').upper()} is not written: the result is Matroska")
        elif options.format == "same" and format_of(target) != format_of(source):
            notices.append(f"{source.suffix.lstrip('.').upper() or 'this format'} is not written: the result is a PNG")
        if not target.name.startswith(source.stem):
            notices.append("the name of the result was cut, since it would be longer than file systems allow")
        # floats, pages and animations stay in their format, and only the file itself tells whether it has them
        suffix = _FULL.get(format_of(source) or "") if options.format is None and not options.pyramid else None
        yield Job(source, target, target.with_suffix(suffix) if suffix else None, tuple(notices), one.root)


def _apart(found: list[_Found], targets: list[Path], label: str, options: UpscaleOptions) -> list[Path]:
    """Longer names where one is wanted twice: with the old suffix, and where that is still one name, with a hash."""
    keys = _Keys()
    made_in = functools.cache(manifest.made_in)

    count = collections.Counter(keys[target] for target in targets)
    longer = []
    for one, target in zip(found, targets, strict=True):
        if count[keys[target]] > 1:
            # an earlier run may have given this input the short name, when no other wanted it
            names = [target, target.with_suffix(_FULL.get(format_of(one.source) or "", target.suffix))]
            made_of = [] if one.root is None else [made_in(one.root).get(os.path.relpath(name, one.root)) for name in names]
            if os.path.abspath(one.source) not in map(str, made_of):
                target = _target(one, one.source.name, label, options)
        longer.append(target)
    sharing = collections.Counter(
        key for key, _ in {(keys[target], one.source.name) for one, target in zip(found, longer, strict=True)}
    )
    return [
        _target(one, one.source.name + _mark(one.source), label, options) if sharing[keys[target]] > 1 else target
        for one, target in zip(found, longer, strict=True)
    ]


def _target(one: _Found, stem: str, label: str, options: UpscaleOptions) -> Path:
    suffix = _suffix(one.source, options)
    room = NAME_BYTES - len(os.fsencode(label)) - max(len(os.fsencode(suffix)), len(".tiff"))
    if len(os.fsencode(stem)) > room:
        mark = _mark(one.source)
        while len(os.fsencode(stem)) > room - len(mark):
            stem = stem[:-1]
        stem += mark
    return one.folder / f"{stem}{label}{suffix}"


def _mark(source: Path) -> str:
    return "~" + hashlib.sha256(os.fsencode(source.name)).hexdigest()[:8]


def _suffix(source: Path, options: UpscaleOptions) -> str:
    if is_video_file(source):
        return video_suffix(source)
    if options.format == "same":
        format = format_of(source)
        return source.suffix if format is not None and FORMATS[format].saver else ".png"
    return f".{options.format or ('tiff' if options.pyramid else 'png')}"


def _leave_out_results(jobs: list[Job]) -> list[str]:
    """Take out jobs whose image is another one's result, by its name beside the images, else by the manifest; tells which."""
    keys = _Keys()
    made_in = functools.cache(manifest.made_in)
    targets = {keys[path]: (path, job) for job in jobs for path in (job.target, job.full_target) if path is not None}
    results: dict[Path, Path] = {}
    for job in jobs:
        path, maker = targets.get(keys[job.source], (job.source, job))
        if maker is job or not (os.path.isfile(job.source) and _is_one_file(path, job.source)):
            continue
        if maker.root is None or os.path.relpath(path, maker.root) in made_in(maker.root):
            results[job.source] = maker.source
    if not results:
        return []
    jobs[:] = [job for job in jobs if job.source not in results]
    first, source = next(iter(results.items()))
    named = f"{first} is" if len(results) == 1 else f"{first} and {len(results) - 1} more inputs are"
    return [f"{named} left out: by name the result of {source}"]


def _checked(jobs: list[Job]) -> Iterator[Job]:
    """The jobs, if no result replaces another one or an input."""
    keys = _Keys()
    sources: dict[str, list[Path]] = {}
    for job in jobs:
        sources.setdefault(keys[job.source], []).append(job.source)
    taken: dict[str, Job] = {}
    for job in jobs:
        for target in (job.target, job.full_target):
            if target is None:
                continue
            key = keys[target]
            replaced = next((source for source in sources.get(key, ()) if _is_one_file(target, source)), None)
            if replaced is not None:
                raise OptionError(f"the result of {job.source} would replace the input {replaced}: give another output")
            if key in taken:
                raise OptionError(
                    f"the results of {taken[key].source} and {job.source} would both be {target}: use different output folders"
                )
            taken[key] = job
        yield job


def _is_one_file(target: Path, source: Path) -> bool:
    try:
        return os.path.samefile(target, source)
    except OSError:  # one of them is not there
        return os.path.realpath(target) == os.path.realpath(source)


class _Keys:
    """What tells whether two paths may be one file; folders are resolved once each.

    The file system of the results may be one for which letters' case and ways to write an accent make no difference.
    """

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __getitem__(self, path: Path) -> str:
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            return _folded(os.path.realpath(path))
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        resolved = os.path.join(self._folders[folder], name)
        return _folded(os.path.realpath(resolved) if os.path.islink(resolved) else resolved)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", os.path.normcase(path)).casefold())


@dataclasses.dataclass
class _Beside:
    """What walks through folders found beside images; as in :class:`Jobs`."""

    others: list[Path] = dataclasses.field(default_factory=list)
    unreadable: list[tuple[Path, str]] = dataclasses.field(default_factory=list)
    folders: list[Path] = dataclasses.field(default_factory=list)


def _walk(folder: Path, recursive: bool, results: Path, beside: _Beside) -> Iterator[Path]:
    """Image files and videos of a folder, sorted; hidden folders, the folder of the results, tiles of DeepZooms and loops of links
    are left out.

    If the results lie in the folder itself, those that its manifest knows are left out too.
    """
    seen: set[tuple[int, int]] = set()
    own = os.path.realpath(results)
    videos = importlib.util.find_spec("av") is not None
    made = set(manifest.made_in(results)) if own == os.path.realpath(folder) else set()
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            beside.unreadable.append((current, f"{current}: cannot be listed ({error.strerror})"))
            continue
        beside.folders.append(current)
        folders = []
        names = {entry.name for entry in entries}
        for entry in entries:
            path = current / entry.name
            if _is_folder(entry):
                is_tiles = entry.name.endswith("_files") and f"{entry.name.removesuffix('_files')}.dzi" in names
                if recursive and not entry.name.startswith(".") and not is_tiles and os.path.realpath(path) != own:
                    folders.append(path)
            elif is_image_file(entry.name) or (videos and is_video_file(entry.name)):
                if not (made and os.path.relpath(path, folder) in made):
                    yield path
            elif not entry.name.startswith("."):
                beside.others.append(path)
        pending += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
