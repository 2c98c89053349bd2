"""Finding a model by its name: bundled with the package, downloadable, or in the user's models folder; reading its card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from drct.errors import CheckpointError, DownloadError, ModelNotFoundError, did_you_mean
from drct.weights.cards import ModelCard, models_folder, recorded_checksums
from drct.weights.detect import detect
from drct.weights.downloads import download as fetch
from drct.weights.files import file_sha256, one_line, read_shapes

BUNDLED = Path(__file__).with_name("bundled")
SUFFIXES = (".safetensors", ".pth", ".pt")
AUTHORS_LICENCE = "MIT, by setup.py of github.com/ming053l/DRCT"
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
DRIVE_PAGE = "https://drive.google.com/file/d/{}/view"
REAL_DRIVE_FOLDER = "https://drive.google.com/drive/folders/1emyaw6aQvhFgFC_RjK1Qo9c1sTRr-avk"


def _official(name: str, architecture: str, parameters: int, file: str, drive_id: str, training: str, **scores: float) -> ModelCard:
    return ModelCard(
        name=name,
        architecture=architecture,
        scale=4,
        parameters=parameters,
        licence=AUTHORS_LICENCE,
        source=DRIVE_PAGE.format(drive_id),
        url=DRIVE.format(drive_id),
        file=file,
        location="downloadable",
        training=training,
        scores=scores,
    )


# Addresses as they stand in the README of the authors' repository; sizes and hashes are given only where somebody published them.
DOWNLOADABLE: tuple[ModelCard, ...] = (
    _official(
        "drct-x4",
        "drct",
        14_139_579,
        "DRCT_X4.pth",
        "1jw2UWAersWZecPq-c_g5RM3mDOoc_cbd",
        "official; DF2K; bicubic LR",
        Set5=33.11,
        Set14=29.35,
        BSD100=28.18,
        Urban100=28.06,
        Manga109=32.59,
    ),
    _official(
        "drct-l-x4",
        "drct_l",
        27_580_719,
        "DRCT-L_X4.pth",
        "1bVxvA6QFbne2se0CQJ-jyHFy94UOi3h5",
        "official; ImageNet, then DF2K; bicubic LR",
        Set5=33.37,
        Set14=29.54,
        BSD100=28.16,
        Urban100=28.70,
        Manga109=33.14,
    ),
    _official(
        "drct-xl-x4",
        "drct_xl",
        32_061_099,
        "DRCT-XL_X4.pth",
        "1uLGwmSko9uF82X4OPOMw3xfM3stlnYZ-",
        "official; ImageNet only, not fine-tuned on DF2K; bicubic LR",
        Set5=32.97,
        Set14=29.08,
    ),
    ModelCard(
        name="real-drct-gan-mse-x4",
        architecture="drct",
        scale=4,
        parameters=14_139_579,
        licence=AUTHORS_LICENCE,
        source=REAL_DRIVE_FOLDER,
        file="Real-DRCT-GAN_MSE_X4.pth",
        location="downloadable",
        training="official; DF2K + OST300, second-order degradations, without GAN",
    ),
    ModelCard(
        name="real-drct-gan-x4",
        architecture="drct",
        scale=4,
        parameters=14_139_579,
        licence=AUTHORS_LICENCE,
        source=REAL_DRIVE_FOLDER,
        file="Real-DRCT-GAN_X4.pth",
        location="downloadable",
        training="official; DF2K + OST300, second-order degradations, GAN fine-tuned from the MSE model",
    ),
    ModelCard(
        name="4xRealWebPhoto_v4_drct-l",
        architecture="drct_l",
        scale=4,
        parameters=27_580_719,
        licence="CC-BY-4.0, Philip Hofmann",
        source="https://github.com/Phhofm/models/releases/tag/4xRealWebPhoto_v4_drct-l",
        url="https://github.com/Phhofm/models/releases/download/4xRealWebPhoto_v4_drct-l/4xRealWebPhoto_v4_drct-l.pth",
        file="4xRealWebPhoto_v4_drct-l.pth",
        # as listed in the Open Model Database (openmodeldb.info)
        size=242_789_758,
        sha256="ebbac92d14989f5c859cd516c81c3e4020d7f94422ed28aed23746adf5f5a18d",
        location="downloadable",
        training="community; photographs from the web, restored and upscaled; 260k iterations with GAN",
    ),
)


def list_models() -> list[ModelCard]:
    """All models that can be used by name: bundled, downloadable (with ``path`` when already here), then local ones.

    Raises:
        CheckpointError: a card file in the package is not readable. One in the models folder is named in ``training``.
    """
    folder = models_folder()
    recorded = recorded_checksums(folder)
    downloadable = []
    for card in DOWNLOADABLE:
        path = folder / card.file
        if path.is_file():
            sha256 = card.sha256 or recorded.get(card.name, (0, None))[1]
            card = card.model_copy(update={"path": path, "size": path.stat().st_size, "sha256": sha256})
        downloadable.append(card)
    bundled = [read_card(path, "bundled") for path in _weight_files(BUNDLED)]
    return bundled + downloadable + [read_card(path, "local") for path in _local_files(folder)]


def find_model(
    path_or_name: str | os.PathLike[str], *, download: bool = True, progress: Callable[[int, int | None], None] | None = None
) -> Path:
    """The weight file of a model, downloaded if need be.

    Args:
        path_or_name: an existing file, or a model's name; case and ``-`` or ``_`` make no difference.
        download: allow a download; ``DRCT_OFFLINE=1`` in the environment forbids it too.
        progress: called during a download with bytes done and bytes in total (None if unknown).

    Raises:
        ModelNotFoundError: no such file and no such model; the nearest name is given.
        DownloadError: the model would have to be downloaded and cannot be.
    """
    path, name, folder = Path(path_or_name), str(path_or_name), models_folder()
    if not name:
        raise ModelNotFoundError("no model is named: give the name of a model or a weight file")
    if os.path.isfile(path):  # unlike Path's, no error where a name is too long or a folder may not be searched
        return path
    local, bundled, downloads = _local_files(folder), _weight_files(BUNDLED), {c.name: folder / c.file for c in DOWNLOADABLE}
    here = {p.stem: p for p in local} | downloads | {p.stem: p for p in bundled}
    # files may share a stem, so file names are sought among all of them
    known = [*here.items(), *((file.name, file) for file in (*bundled, *downloads.values(), *local))]
    for candidate, file in sorted(known, key=lambda pair: pair[0] != name):  # the very same name first
        if same_name(name, candidate) and file.is_file():
            return file
    for card in DOWNLOADABLE:
        if same_name(name, card.name) or same_name(name, card.file):
            if not download:
                by_hand = f"get it from {card.source} and put it at {folder / card.file}"
                raise DownloadError(f"model '{card.name}' is not on this machine and downloads are off: {by_hand}")
            return fetch(card, progress=progress)
    if os.path.isdir(path):
        raise ModelNotFoundError(f"{path} is a folder: give a weight file, or a name that 'drct models' lists")
    if path.suffix.lower() in SUFFIXES or path.name != name:
        raise ModelNotFoundError(f"{path} does not exist: give a weight file, or a name that 'drct models' lists")
    if members := [card.name for _, card in sorted(family(name).items())]:
        raise ModelNotFoundError(f"'{name}' is a family of networks: name one of {', '.join(members)}")
    if name == "auto":
        raise ModelNotFoundError(
            "'auto' chooses a network for each picture in drct upscale and drct.AutoUpscaler: name a model here"
        )
    # a name that is near to the one of a missing model would mislead
    hint = did_you_mean(name.lower(), here) if bundled else f", and the bundled models are missing: no weight files in {BUNDLED}"
    raise ModelNotFoundError(f"model '{name}' is unknown{hint}; 'drct models' lists all")


def family(name: str) -> dict[int, ModelCard]:
    """By scale, the models ``NAME-x2``, ``NAME-x3``, ...; without ``path`` are those that would have to be downloaded."""
    found: dict[int, ModelCard] = {}
    for card in sorted(list_models(), key=lambda card: card.path is None):  # what is here goes first
        match = re.fullmatch(r"(.+)-x(\d+)", card.name, re.IGNORECASE)
        if match and same_name(match[1], name):
            found.setdefault(int(match[2]), card)
    return found


def read_card(path: Path, location: Literal["bundled", "local"] = "local") -> ModelCard:
    """The card of a weight file: ``NAME.json`` beside it, else what the file itself tells.

    Beside a local file may lie a JSON file of another program: its card then says so in ``training``.

    Raises:
        CheckpointError: the card beside a bundled file is not readable.
    """
    given = {"name": path.stem, "file": path.name, "path": path, "size": path.stat().st_size, "location": location}
    beside, complaint = path.with_suffix(".json"), ""
    if beside.is_file():
        try:
            return ModelCard(**(json.loads(beside.read_text(encoding="utf-8")) | given))
        except (ValueError, TypeError, OSError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
            complaint = f"{beside} is no model card ({one_line(error)})"
            if location == "bundled":
                raise CheckpointError(complaint) from error
    try:
        file = read_shapes(path)
        architecture, options = detect(file.tensors | file.buffers)
    except CheckpointError as error:
        return ModelCard(**given, training=f"not usable: {error}")
    return ModelCard(
        **given,
        architecture=architecture,
        scale=options["upscale"],
        parameters=sum(tensor.numel() for tensor in file.tensors.values()),
        licence=file.metadata.get("licence", ""),
        training="; ".join(text for text in (complaint, file.metadata.get("training", "")) if text),
    )


def write_card(
    path: Path, *, source: str = "", scores: dict[str, float] | None = None, lpips: dict[str, float] | None = None
) -> Path:
    """Write the card ``NAME.json`` of a weight file beside it, as bundled models carry one.

    Args:
        path: a file of :func:`drct.weights.save_network`; its licence and training note go into the card.
        source: where the model comes from.
        scores: PSNR in dB on the Y channel by benchmark.
        lpips: LPIPS by set.
    """
    beside = path.with_suffix(".json")
    beside.unlink(missing_ok=True)  # an older card must not speak for the new file
    measured = {"scores": scores or {}, "lpips": lpips or {}}
    card = read_card(path).model_copy(update={"source": source, "sha256": file_sha256(path), **measured})
    text = card.model_dump_json(indent=2, exclude={"path", "location", "url"} | ({"lpips"} if not lpips else set()))
    beside.write_text(text + "\n", encoding="utf-8")
    return beside


def same_name(one: str, other: str) -> bool:
    """Whether two names of models are the same but for case and ``-`` or ``_``."""
    return re.sub(r"[-_ ]", "-", one.lower()) == re.sub(r"[-_ ]", "-", other.lower())


def _weight_files(folder: Path) -> list[Path]:
    try:
        names = [Path(name) for name in os.listdir(folder)]
    except OSError:  # it is not there, or may not be looked at
        return []
    return sorted(
        folder / n for n in names if n.suffix.lower() in SUFFIXES and not n.name.startswith(".") and os.path.isfile(folder / n)
    )


def _local_files(folder: Path) -> list[Path]:
    """Weight files in the models folder that no download put there."""
    known = {card.file for card in DOWNLOADABLE}
    return [path for path in _weight_files(folder) if path.name not in known]
