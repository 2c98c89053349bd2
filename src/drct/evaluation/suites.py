"""Benchmark sets on disk: finding HR and LR folders in the layouts that people use, pairing their files, reading the pairs.

Found are, for a set ``Set5`` in a data folder and scale 4, with any case of letters:

* ``Set5/HR``, ``Set5/GT``, ``Set5/GTmod12``, ``Set5/original`` or the images in ``Set5`` itself, with LR in ``Set5/LR_bicubic/X4``,
  ``Set5/LRbicx4``, ``Set5/LR/x4``, ``Set5/LR_x4``, ``Set5/X4``, ``Set5/LR`` (BasicSR, EDSR, SwinIR, HAT)
* ``Set5/image_SRF_4`` with ``img_001_SRF_4_HR.png`` and ``img_001_SRF_4_LR.png`` side by side (SelfExSR), or any folder of such
  pairs: ``_HR`` or ``_GT`` with ``_LR`` or ``_x4``
* ``HR/Set5/x4`` and ``LR/LRBI/Set5/x4`` (RCAN)
* ``DIV2K_valid_HR`` and ``DIV2K_valid_LR_bicubic/X4`` for a set ``DIV2K``, ``DIV2K_valid`` or ``DIV2K_valid_HR``

``B100`` and ``BSDS100`` are other names of ``BSD100``. Where there is no LR folder, LR is made from HR by MATLAB's bicubic.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from drct.errors import DataError, did_you_mean
from drct.imaging import Picture, is_image_file, read, resize

ALIASES = ({"bsd100", "b100", "bsds100"}, {"urban100", "urban"}, {"manga109", "manga"})
HR_FOLDERS = ("HR", "GTmod{s}", "GTmod12", "GT", "HR/x{s}", "original", "gt_mod{s}", "HR_mod{s}", "image_SRF_{s}")
LR_FOLDERS = (
    "LR_bicubic/X{s}",
    "LRbicx{s}",
    "LR_bicubic_x{s}",
    "LRbic/x{s}",
    "LR/x{s}",
    "LR_x{s}",
    "LRx{s}",
    "X{s}",
    "image_SRF_{s}",
    "LR_bicubic",
    "LR",
)


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a set.

    Attributes:
        name: what HR and LR have in common, unique within the set.
        hr: ground truth; None for a set that has LR only.
        lr: low resolution; None where it is made from HR.
    """

    name: str
    hr: Path | None
    lr: Path | None


@dataclasses.dataclass(frozen=True)
class Suite:
    """A set of images to test on.

    Attributes:
        name: as the user called it.
        scale: magnification.
        items: images in order of their names.
        left_out: name and cause of files that cannot count, found without reading pixels.
    """

    name: str
    scale: int
    items: tuple[Item, ...]
    left_out: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Pair:
    """Pixels of one item.

    Attributes:
        lr: ``(h, w, C)`` uint8 or uint16; C is 3 (RGB) or 1 (grey).
        hr: ``(scale * h, scale * w, C)`` in the same type, or None.
        notices: what a reader of the figures should know, one short sentence each.
        icc: colour profile of the ground truth, or of LR where there is none.
    """

    lr: np.ndarray
    hr: np.ndarray | None
    notices: tuple[str, ...]
    icc: bytes | None = None


def find_suites(data: Path, names: Sequence[str], scale: int) -> list[Suite]:
    """Find sets by name in a data folder; without names, all that are there, or the folder itself as one set.

    A set without images is returned with the cause in ``left_out``.

    Raises:
        DataError: the folder does not exist, or has no set of a given name.
    """
    data = Path(data)
    if not data.is_dir():
        raise DataError(f"{data} is not a folder: --data names the folder that holds the benchmark sets")
    if names:
        return [_find_suite(data, name, scale) for name in names]
    if _hr_folder(data, scale) is not None or _lr_folder(data, scale) is not None or _images(data):
        return [_pair_found(data.resolve().name, data, scale)]
    folders = [folder for folder in sorted(data.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    # one split of a set, or data sorted by kind first, would otherwise be taken for sets of their own
    sets = [folder for folder in folders if _hr_folder(folder, scale) or _images(folder)]
    if not sets:
        raise DataError(f"{data} holds no benchmark set: expected folders such as Set5/HR, or images")
    return [_pair_found(folder.name, folder, scale) for folder in sets]


def pair_folders(name: str, hr: Path | None, lr: Path | None, scale: int, template: str = "{}") -> Suite:
    """Make a set of an HR and an LR folder, or of one of them.

    Where both are one folder, or the names in an HR folder alone say that most of it are pairs, names tell HR from LR.

    Args:
        template: ``filename_tmpl`` of BasicSR: the LR name made from that of HR, both without their suffixes. ``{}`` is no
            template: names belong together that are the same without what tells HR from LR.

    Raises:
        DataError: a folder does not exist.
    """
    for folder in (hr, lr):
        if folder is not None and not folder.is_dir():
            raise DataError(f"{folder} is not a folder: the set '{name}' needs one")
    hr_paths = [] if hr is None else _images(hr)
    lr_paths = [] if lr is None else _images(lr)
    left_out: list[tuple[str, str]] = []
    if hr is not None and template == "{}" and (hr == lr or (lr is None and _side_by_side(hr_paths, scale))):
        hr_paths, lr_paths, left_out = _sides(hr_paths, scale)
        if not hr_paths:
            return Suite(name, scale, (), ((str(hr), "it holds no image whose name ends in _HR or _GT"),))
        if lr is not None and not lr_paths:
            cause = f"it holds no LR image of scale {scale}, whose name ends in _LR or _x{scale}"
            return Suite(name, scale, (), ((str(lr), cause),))
        lr = hr if lr_paths else None  # with LR of other scales only, LR is made
    elif hr == lr:
        named = {template.format(path.stem) for path in hr_paths}
        hr_paths = [path for path in hr_paths if path.stem not in named]
    hr_images, lr_images = _keyed(hr_paths, scale), _keyed(lr_paths, scale)
    if template != "{}" and hr is not None:
        lr_images = {path.stem: path for path in lr_paths}
    if hr is None:
        items = [Item(key, None, path) for key, path in sorted(lr_images.items())]
        return Suite(name, scale, tuple(items), () if items else ((str(lr), "the folder holds no images"),))
    if not hr_images:
        return Suite(name, scale, (), ((str(hr), "the folder holds no images"),))
    if lr is not None and not lr_images:
        return Suite(name, scale, (), ((str(lr), "the folder holds no images"),))
    items = []
    for key, path in sorted(hr_images.items()):
        wanted = key if template == "{}" else template.format(path.stem)
        if lr is None:
            items.append(Item(key, path, None))
        elif wanted in lr_images:
            items.append(Item(key, path, lr_images[wanted]))
        else:
            called = "" if template == "{}" else f", which filename_tmpl calls {wanted}"
            left_out.append((str(path), f"{lr} has no LR image for it{called}"))
    return Suite(name, scale, tuple(items), tuple(left_out))


def load_pair(item: Item, scale: int) -> Pair:
    """Read the pixels of an item, crop HR to a multiple of the scale, and make LR where there is none.

    Raises:
        DataError: the two do not belong together (size, depth), or floats; the message names the file.
        ImageError: a file cannot be read.
    """
    notices: list[str] = []
    if item.hr is None:
        assert item.lr is not None
        picture = read(item.lr)
        return Pair(_pixels(picture, item.lr, notices), None, tuple(notices), picture.icc)
    truth = read(item.hr)
    hr = _pixels(truth, item.hr, notices)
    height, width = (side // scale for side in hr.shape[:2])
    if height == 0 or width == 0:
        raise DataError(f"{item.hr} is {hr.shape[1]} x {hr.shape[0]}, smaller than the scale {scale}")
    hr = hr[: height * scale, : width * scale]
    if item.lr is None:
        return Pair(make_lr(hr, scale), hr, tuple(notices), truth.icc)
    picture = read(item.lr)
    lr = _pixels(picture, item.lr, notices)
    if lr.shape[:2] != (height, width):
        raise DataError(
            f"{item.lr} is {lr.shape[1]} x {lr.shape[0]}, but x{scale} of {item.hr.name} ({hr.shape[1]} x {hr.shape[0]}) "
            f"needs {width} x {height}"
        )
    if lr.dtype != hr.dtype:
        raise DataError(f"{item.lr} has {8 * lr.itemsize} bits, but {item.hr} has {8 * hr.itemsize}: bring both to one depth")
    icc = truth.icc
    if lr.shape[2] != hr.shape[2]:
        icc = None if truth.is_grey else icc  # a profile of grey does not fit RGB
        notices.append("one of HR and LR is grey and the other is not: both are taken as RGB")
        lr, hr = as_rgb(lr), as_rgb(hr)
    if picture.icc != truth.icc:
        notices.append("colour profiles of HR and LR differ: values are compared as they are")
    return Pair(lr, hr, tuple(dict.fromkeys(notices)), icc)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Grey ``(H, W, 1)`` repeated to three channels; RGB as it is."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def make_lr(hr: np.ndarray, scale: int) -> np.ndarray:
    """LR of the benchmarks: MATLAB's bicubic with antialiasing, 8-bit images rounded after each axis."""
    return resize(hr, scale=1 / scale, rounding="uint8_per_pass" if hr.dtype == np.uint8 else "none")


def _pixels(picture: Picture, path: Path, notices: list[str]) -> np.ndarray:
    if picture.pixels.dtype == np.float32:
        raise DataError(f"{path} holds floating point values: benchmarks are defined on 8 or 16 bits")
    notices += picture.notices
    if picture.alpha is not None:
        notices.append("transparency is ignored")
    return picture.pixels


def _find_suite(data: Path, name: str, scale: int) -> Suite:
    for base in (data, _child(data, name.split("_")[0])):  # DIV2K_valid_HR beside other sets, or in DIV2K
        if base is None:
            continue
        hr = _candidates(base, (f"{name}_HR", f"{name}_valid_HR", f"HR/{name}/x{{s}}", f"HR/{name}"), scale)
        lr = (f"{name}_LR_bicubic/X{{s}}", f"{name}_valid_LR_bicubic/X{{s}}", f"LR/LRBI/{name}/x{{s}}", f"LR/{name}/x{{s}}")
        if hr:
            return pair_folders(name, hr[0], next(iter(_candidates(base, lr, scale)), None), scale)
    folder = _child(data, name)
    if folder is not None:
        return _pair_found(name, folder, scale)
    if data.name.lower() in _names(name) and (_hr_folder(data, scale) or _images(data)):
        return _pair_found(name, data, scale)
    there = [folder.name for folder in sorted(data.iterdir()) if folder.is_dir()]
    hint = did_you_mean(name, there) or (f": it has {', '.join(there[:8])}" if there else "")
    raise DataError(f"{data} has no set '{name}'{hint}")


def _pair_found(name: str, folder: Path, scale: int) -> Suite:
    hr, lr = _hr_folder(folder, scale), _lr_folder(folder, scale)
    if (hr is None and lr is None) or (hr is None and _images(folder)):
        hr, lr = folder, lr or _lr_beside(folder, scale)
    if hr is not None and hr == lr and not _sides(_images(hr), scale)[1]:
        lr = None  # nobody asked for LR of this folder
    return pair_folders(name, hr, lr, scale)


def _hr_folder(folder: Path, scale: int) -> Path | None:
    found = _candidates(folder, HR_FOLDERS, scale)
    # an empty HR folder is a mistake to be told, and not a reason to look elsewhere
    return next((f for f in found if _images(f)), found[0] if found else None)


def _lr_folder(folder: Path, scale: int) -> Path | None:
    found = _candidates(folder, LR_FOLDERS, scale)
    # LR_bicubic with X2 and X3 only is no LR folder for x4: LR is made
    return next((f for f in found if _images(f)), next((f for f in found if not any(f.iterdir())), None))


def _lr_beside(folder: Path, scale: int) -> Path | None:
    """``DIV2K_valid_LR_bicubic/X4`` of ``DIV2K_valid_HR``."""
    split = re.fullmatch("(?i)(.+)_hr", folder.name)
    return _child(folder.parent, f"{split[1]}_LR_bicubic/X{scale}") if split else None


def _candidates(folder: Path, patterns: Iterable[str], scale: int) -> list[Path]:
    return [found for pattern in patterns if (found := _child(folder, pattern.replace("{s}", str(scale))))]


def _child(folder: Path, path: str) -> Path | None:
    """The subfolder of this path, in any case of letters and under any name of a set."""
    for part in path.split("/"):
        wanted = _names(part)
        found = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name.lower() in wanted]
        exact = [child for child in found if child.name == part]
        if not found:
            return None
        folder = (exact or found)[0]
    return folder


def _names(name: str) -> set[str]:
    lower = name.lower()
    return next((names for names in ALIASES if lower in names), {lower})


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if is_image_file(path) and path.is_file()]


def _keyed(paths: Sequence[Path], scale: int) -> dict[str, Path]:
    """Images by the name that HR and LR share."""
    keys = [_key(path.stem, scale) for path in paths]
    counts = Counter(keys)
    # a name that stripping makes ambiguous is kept whole, with its suffix if even that is not enough
    stems = Counter(path.stem for path in paths)
    result = {}
    for key, path in zip(keys, paths, strict=True):
        result[key if counts[key] == 1 else path.stem if stems[path.stem] == 1 else path.name] = path
    return result


def _key(stem: str, scale: int | str) -> str:
    """``babyx4``, ``baby_LRBI_x4`` and ``img_001_SRF_4_HR`` without what tells HR from LR."""
    shorter = re.sub(rf"(?i)(x{scale}|[_-](x{scale}|srf_{scale}|hr|lr|gt|lrbi|lrbic|bicubic|mod\d+))+$", "", stem)
    return shorter or stem


def _marks(stem: str, scale: int | str) -> str:
    return stem[len(_key(stem, scale)) :].lower()


def _side(stem: str, scale: int | str) -> str:
    """``"hr"``, ``"lr"`` or, of a name that says neither, ``""``."""
    marks = _marks(stem, scale)
    return "hr" if re.search("hr|gt", marks) else "lr" if re.search("lr|x", marks) else ""


def _side_by_side(paths: Sequence[Path], scale: int) -> bool:
    """Whether the names say that HR and LR, of whatever scale, of at least half of the images are among these."""
    stems = [path.stem for path in paths]
    scales = (scale, "[2-9]")
    hr = [_key(stem, scale) for stem in stems if _side(stem, scale) == "hr"]
    lr = {_key(stem, s) for s in scales for stem in stems if _side(stem, s) == "lr"}
    others = [stem for stem in stems if not any(_side(stem, s) for s in scales) and not _version(stem, hr)]
    return 0 < len(hr) + len(others) <= 2 * sum(key in lr for key in hr)


def _sides(paths: Sequence[Path], scale: int) -> tuple[list[Path], list[Path], list[tuple[str, str]]]:
    """HR and LR of a folder that holds both, and name and cause of the files that are neither."""
    hr = [path for path in paths if _side(path.stem, scale) == "hr"]
    lr = [path for path in paths if _side(path.stem, scale) == "lr"]
    # beside baby_LR, baby_x4 is what some method made of it
    lr = [path for path in lr if "lr" in _marks(path.stem, scale)] or lr
    keys = {_key(path.stem, scale) for path in hr}
    known = {*hr, *lr}
    orphans = {path for path in lr if _key(path.stem, scale) not in keys}
    left_out = []
    versions: dict[str, list[Path]] = {}
    for path in paths:
        if path in orphans:
            left_out.append((str(path), "there is no HR image for it"))
        elif path not in known:
            version = _version(path.stem, keys)
            if version:
                versions.setdefault(version, []).append(path)
            else:
                left_out.append((str(path), "its name says neither HR nor LR"))
    for version, found in versions.items():
        if len(found) == 1:
            left_out.append((str(found[0]), "its name says that it is another version of an HR image"))
        else:  # published sets hold the results of ten methods
            cause = f"{len(found)} images that end in {version} are other versions of HR images by their names"
            left_out.append((str(found[0].parent), cause))
    return hr, lr, left_out


def _version(stem: str, keys: Iterable[str]) -> str:
    """What tells this name from that of an HR image, such as ``_bicubic``; ``""`` where they are different images."""
    longest = max((key for key in keys if stem.startswith((f"{key}_", f"{key}-", f"{key}x"))), key=len, default=stem)
    ending = stem[len(longest) :]
    return "" if re.fullmatch(r"[_-]\d+", ending) else ending  # img_3 is no version of img
