"""The test run: several models on several sets, image by image, continued where an earlier run was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from drct.errors import DataError, ImageError, OptionError, OutOfMemoryError
from drct.evaluation.enlargers import Enlarger, PeakMemory, open_enlarger, timed
from drct.evaluation.measures import MEASURES, Convention, check_convention, check_measures, measure
from drct.evaluation.report import ImageResult, LeftOut, ModelResult, Notice, Report
from drct.evaluation.suites import Item, Pair, Suite, load_pair
from drct.imaging import format_of, read, replacing_text, write
from drct.places import cache_folder, check_place, written

try:
    import fcntl
except ImportError:  # Windows: two runs of the same models at the same time are not told apart
    fcntl = None  # type: ignore[assignment]

Say = Callable[[str], None]
Advance = Callable[[str, int, int], None]  # label, done, total
RECORDS = "results.jsonl"
KEPT_DAYS = 30  # that an unfinished run is kept
FORMAT = 2  # of the records; another one does not continue them


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        metrics: keys of :data:`drct.evaluation.measures.MEASURES`.
        crop: pixels cut from each side before measuring; None for the scale, the convention.
        convention: how luma and grey images are seen, see :mod:`drct.evaluation.measures`.
        save: folder for the results, ``SAVE/MODEL/SET/IMAGE.png``; None to keep none.
        save_as: path below ``save`` with the fields ``model``, ``suite`` and ``image``.
        keep_images: keep the results until :meth:`Run.finish` although they are not saved, for a page.
        resume: continue an interrupted run.
    """

    metrics: tuple[str, ...] = ("psnr", "ssim")
    crop: int | None = None
    convention: Convention = "float"
    save: Path | None = None
    save_as: str = "{model}/{suite}/{image}.png"
    keep_images: bool = False
    resume: bool = True


class Run:
    """A test run. Call :meth:`run`, read :attr:`report`, :meth:`finish` when everything was written, and :meth:`close` in any case.

    What has been measured is kept in the user's cache until then, so that the same run, started again, goes on where it was cut
    off.
    """

    def __init__(self, suites: list[Suite], settings: Settings, *, say: Say = print, advance: Advance | None = None) -> None:
        if not suites:
            raise OptionError("there is no set to test on")
        self.suites = suites
        self.settings = settings
        self.scale = suites[0].scale
        self.crop = self.scale if settings.crop is None else settings.crop
        self.say = say
        self.advance = advance or (lambda label, done, total: None)
        metrics = check_measures(settings.metrics)
        self.report = Report(
            self.scale, metrics, self.crop, check_convention(settings.convention), False, [suite.name for suite in suites]
        )
        for suite in suites:
            for name, cause in suite.left_out:
                image = "" if Path(name).is_dir() else Path(name).name
                self.report.left_out.append(LeftOut(suite.name, image, f"{name}: {cause}"))
        self._records: dict[str, _Records] = {}
        if len(set(self.report.suites)) < len(suites):
            raise OptionError("two sets have the same name: name each set once")
        forget_old_runs()

    def run(self, model: str | os.PathLike[str] | Enlarger, **options: Any) -> None:
        """Test one model; ``options`` are those of :func:`drct.evaluation.enlargers.open_enlarger`.

        Raises:
            Error: the model cannot be had, or the results cannot be saved. Images that fail are left out and named in the report.
        """
        enlarger = model if isinstance(model, Enlarger) else open_enlarger(model, self.scale, **options)
        enlarger = dataclasses.replace(enlarger, label=self._unique(enlarger.label))
        records = self._records[enlarger.label] = _Records(self._folder(enlarger), self.settings.resume)
        work = [(suite, item) for suite in self.suites for item in suite.items]
        self._check_targets(enlarger, work)
        total = len(work)
        known = sum(self._known(records, enlarger, *one) is not None for one in work)
        if known:
            self.say(f"{enlarger.label}: going on with an interrupted run, {known} of {total} images are done")
        device = enlarger.upscaler.device if enlarger.upscaler else "cpu"
        memory, warm = PeakMemory(device), False
        peaks: list[int | None] = []
        with records:
            for done, (suite, item) in enumerate(work):
                self.advance(f"{enlarger.label}: {suite.name} {item.name}", done, total)
                record = self._known(records, enlarger, suite, item)
                if record is None:
                    pair = self._load(suite, item)
                    if pair is None:
                        continue
                    if not warm:
                        enlarger.warm_up(pair.lr)
                        warm = True
                    record = self._measure(enlarger, suite, item, pair)
                    if record is None:
                        continue
                    record = dataclasses.replace(record, peak_memory=memory.read())
                    records.add(record)
                self.report.results.append(dataclasses.replace(record.result, model=enlarger.label))
                told = [*record.notices, *self._blind(suite, item)]
                self.report.notices += [notice for notice in told if notice not in self.report.notices]
                peaks.append(record.peak_memory)
        self.advance(enlarger.label, total, total)
        cost = enlarger.cost
        self.report.ensemble |= enlarger.upscaler is not None and enlarger.upscaler.ensemble
        self.report.models.append(
            ModelResult(
                enlarger.label,
                cost.parameters if cost else None,
                cost.multiply_adds if cost else None,
                max((peak for peak in peaks if peak is not None), default=None),
                str(device),
                enlarger.upscaler.precision if enlarger.upscaler else "fp32",
            )
        )

    def _check_targets(self, enlarger: Enlarger, work: list[tuple[Suite, Item]]) -> None:
        """Refuse to write results over images that are tested on.

        Raises:
            OptionError: naming the first one.
        """
        if self.settings.save is None:
            return
        tested = {identity(path) for _, item in work for path in (item.hr, item.lr) if path is not None and path.exists()}
        for suite, item in work:
            target = self._image_target(enlarger, suite, item)
            if target is not None and target.exists() and identity(target) in tested:
                raise OptionError(f"{target} is tested on and would be written over: choose another folder with --save")

    def image_path(self, model: str, suite: str, image: str) -> Path:
        """Where a result lies that was saved or kept."""
        if self.settings.save is not None:
            return self._saved(self.settings.save, self.settings.save_as, model, suite, image)
        return self._saved(self._records[model].folder, "{suite}/{image}.png", model, suite, image)

    def sr(self, model: str, suite: str, image: str) -> np.ndarray:
        """Pixels of a result that was saved or kept."""
        return read(self.image_path(model, suite, image)).pixels

    def items(self) -> Iterator[tuple[str, Item]]:
        """Set name and item of every image that counts for some model."""
        for suite in self.suites:
            counting = set(self.report.images(suite.name))
            yield from ((suite.name, item) for item in suite.items if item.name in counting)

    def finish(self) -> None:
        """Forget what was kept for continuing."""
        for records in self._records.values():
            shutil.rmtree(records.folder, ignore_errors=True)

    def close(self) -> None:
        """Let later runs go on with this one, unless it was finished."""
        for records in self._records.values():
            records.release()

    def _load(self, suite: Suite, item: Item) -> Pair | None:
        try:
            return load_pair(item, self.scale)
        except (DataError, ImageError) as error:
            self._leave_out(LeftOut(suite.name, item.name, str(error)))
            return None

    def _measure(self, enlarger: Enlarger, suite: Suite, item: Item, pair: Pair) -> _Record | None:
        try:
            sr, seconds = timed(enlarger, pair.lr)
        except (ImageError, OutOfMemoryError) as error:  # values that are not finite, or too large an image
            self._leave_out(LeftOut(suite.name, item.name, f"{item.name}: {error}", enlarger.label))
            return None
        notices = list(pair.notices)
        if pair.lr.shape[2] == 1:
            notices.append("grey, taken as RGB" if self.settings.convention == "basicsr" else "grey, compared as it is")
        values: dict[str, float | None] = {}
        for metric in self.report.metrics:
            try:
                values[metric] = measure(metric, sr, pair.hr, self.crop, self.settings.convention)
            except DataError as error:
                values[metric] = None
                notices.append(str(error))
        path = self._image_target(enlarger, suite, item)
        if path is not None:
            make_folder(path.parent)
            write(path, sr)
        result = ImageResult(enlarger.label, suite.name, item.name, values, seconds, sr.shape[1], sr.shape[0])
        told = tuple(Notice(suite.name, item.name, text) for text in notices)
        return _Record(result, told, _stamp(item), _file_stamp(path))

    def _image_target(self, enlarger: Enlarger, suite: Suite, item: Item) -> Path | None:
        if self.settings.save is not None:
            return self._saved(self.settings.save, self.settings.save_as, enlarger.label, suite.name, item.name)
        if self.settings.keep_images:
            folder = self._records[enlarger.label].folder
            return self._saved(folder, "{suite}/{image}.png", enlarger.label, suite.name, item.name)
        return None

    @staticmethod
    def _saved(folder: Path, template: str, model: str, suite: str, image: str) -> Path:
        names = {key: _file_name(name) for key, name in (("model", model), ("suite", suite), ("image", image))}
        if names["image"] != image:  # another image may get this name: "a:b" and "a?b"
            names["image"] += "~" + hashlib.sha256(os.fsencode(image)).hexdigest()[:8]
        return folder / template.format(**names)

    def _known(self, records: _Records, enlarger: Enlarger, suite: Suite, item: Item) -> _Record | None:
        """What an interrupted run found, if the files are the same and its image, where one is wanted, is there.

        Another run may have written its own image in the same place since.
        """
        record = records.known.get((suite.name, item.name))
        if record is None or record.stamp != _stamp(item) or not set(self.report.metrics) <= record.result.values.keys():
            return None
        path = self._image_target(enlarger, suite, item)
        if path is not None and (record.picture is None or record.picture != _file_stamp(path)):
            return None
        return record

    def _leave_out(self, left: LeftOut) -> None:
        if left not in self.report.left_out:
            self.report.left_out.append(left)

    def _blind(self, suite: Suite, item: Item) -> list[Notice]:
        """What is asked for and cannot be measured; no part of the records, which go on with other metrics, too."""
        metrics = [MEASURES[metric].label for metric in self.report.metrics if MEASURES[metric].needs_hr]
        if item.hr is not None or not metrics:
            return []
        return [Notice(suite.name, item.name, f"not measured without ground truth: {', '.join(metrics)}")]

    def _unique(self, label: str) -> str:
        """The label, with a number if another model has it already."""
        taken = {"HR", *(model.label for model in self.report.models)}  # the ground truth beside them
        numbered = (f"{label} ({i})" for i in range(2, len(taken) + 3))
        return label if label not in taken else next(name for name in numbered if name not in taken)

    def _folder(self, enlarger: Enlarger) -> Path:
        what = {
            "format": FORMAT,
            "scale": self.scale,
            "crop": self.crop,
            "convention": self.settings.convention,
            **enlarger.identity,
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
        return cache_folder("test") / digest[:24]


@dataclasses.dataclass(frozen=True)
class _Record:
    """What is kept of one image until the run is finished."""

    result: ImageResult
    notices: tuple[Notice, ...]
    stamp: list[Any]
    picture: list[Any] | None
    peak_memory: int | None = None


class _Records:
    """Records of an unfinished run, one JSON line per image.

    The folder belongs to one run at a time; another run of the same models at the same time gets a folder of its own, which it does
    not share with later ones.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.known: dict[tuple[str, str], _Record] = {}
        make_folder(folder)
        self._lock = _lock(folder)
        if self._lock is None:
            self.folder = folder.with_name(f"{folder.name}-{os.getpid()}-{time.monotonic_ns()}")
            return
        self.folder = folder
        path = folder / RECORDS
        if not resume:
            path.unlink(missing_ok=True)
        elif path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    values = json.loads(line)
                    result = ImageResult(**values["result"])
                    notices = tuple(Notice(**notice) for notice in values["notices"])
                    found = _Record(result, notices, values["stamp"], values["picture"], values["peak_memory"])
                    self.known[result.suite, result.image] = found
                except (ValueError, KeyError, TypeError):
                    continue  # the line that was being written when the run was cut off

    def release(self) -> None:
        """Let another run have the folder."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> None:
        make_folder(self.folder)
        self._file = (self.folder / RECORDS).open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, record: _Record) -> None:
        # Python writes and reads Infinity, which the PSNR of identical images needs
        self._file.write(json.dumps(dataclasses.asdict(record)) + "\n")
        self._file.flush()


def _lock(folder: Path) -> IO[str] | None:
    """Hold a folder until the file is closed or the process ends; None if another run holds it."""
    file = (folder / "lock").open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            return file  # a file system without locks
    return file


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; raises :class:`OptionError` where that is not possible."""
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)


def identity(path: Path) -> tuple[int, int]:
    """What is the same for all names of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino


def check_writable(path: Path) -> None:
    """Create the folder of a text that is written later.

    Raises:
        OptionError: it could not be written, or is called like an image, which a slip of the hand could cost.
    """
    if format_of(path):
        raise OptionError(f"{path} is called like an image, and might be one: choose another name")
    check_place(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; errors are those of :func:`drct.places.written`."""
    make_folder(path.parent)
    with written(path), replacing_text(path) as file:
        file.write(text)


def forget_old_runs() -> None:
    """Remove unfinished runs that nobody went on with for so long."""
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for path in cache_folder("test").glob(f"*/{RECORDS}"):
        with contextlib.suppress(OSError):  # another process forgets, too
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path.parent, ignore_errors=True)


def _stamp(item: Item) -> list[Any]:
    """What tells whether the files of an item are still the same; JSON values."""
    return [_file_stamp(path) for path in (item.hr, item.lr)]


def _file_stamp(path: Path | None) -> list[Any] | None:
    """What tells whether a file is still the same; None where there is none."""
    if path is None or not path.is_file():
        return None
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _file_name(label: str) -> str:
    """A label as one part of a path."""
    return "".join("_" if c in '/\\:*?"<>|' else c for c in label)
