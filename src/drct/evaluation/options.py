"""What a test run can be told: typed options, and the published test option files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from drct.checking import first_problem, folder_name, key_places, name_template, read_option_file, several, without_keys
from drct.errors import OptionError
from drct.evaluation.measures import Convention

OVERLAP = 32  # LR pixels that neighbouring tiles share
BRANCHES = ("constrained-int", "literal['auto','off']")  # of the type of a tile
EXPECTED = {"tile": "must be 'auto', 'off' or a number of pixels"}


Names = Annotated[tuple[str, ...], BeforeValidator(several)]


class Checked(BaseModel):
    """Base of the options of a verb: immutable, and wrong ones are told in one line.

    Raises:
        OptionError: an unknown option (the nearest valid one is named) or a value that is not possible.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(first_problem(error, type(self).model_fields, branches=BRANCHES, expected=EXPECTED)) from None


class RunOptions(Checked):
    """How a test runs and what it leaves behind."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: str = Field("fp32", description="fp32, as published figures are made; bf16, fp16 or auto")
    tile: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = Field("off", description="side of the tiles in LR pixels")
    overlap: int = Field(OVERLAP, ge=0, description="LR pixels that neighbouring tiles share")
    ensemble: bool = Field(False, description="average over eight flips and rotations")
    save: Path | None = Field(None, description="folder for the results: SAVE/MODEL/SET/IMAGE.png")
    json_file: Path | None = Field(None, description="all figures, for programs")
    markdown: Path | None = Field(None, description="the tables")
    html: Path | None = Field(None, description="a page with a slider for each image")
    resume: bool = Field(True, description="continue an interrupted run")


class EvaluationOptions(RunOptions):
    """Options of :func:`drct.evaluation.evaluate`."""

    models: Names = Field(min_length=1, description="model names, weight files, bicubic, nearest")
    data: Path = Field(description="folder with the benchmark sets")
    sets: Names = Field((), description="names of sets; default is all that are there")
    scale: int = Field(4, ge=1, description="magnification")
    metrics: Names = Field(("psnr", "ssim"), min_length=1, description="see drct.evaluation.measures")
    crop: int | None = Field(None, ge=0, description="pixels cut from each side; default is the scale")
    convention: Convention = Field("float", description="how luma and grey images are seen")


class Group(BaseModel):
    """Base of the groups of an option file: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSetGroup(Group):
    """``datasets.test_1`` and so on."""

    name: str
    type: Literal["PairedImageDataset", "SingleImageDataset"] = "PairedImageDataset"
    dataroot_gt: Path | None = None
    dataroot_lq: Path | None = None
    filename_tmpl: Annotated[str, AfterValidator(name_template)] = "{}"


class TileGroup(Group):
    """``tile``: side of the tiles in LR pixels, and what is added on each side of them."""

    tile_size: int = Field(gt=0)
    tile_pad: int = Field(OVERLAP, ge=0)


class PathGroup(Group):
    """``path``: the weights."""

    pretrain_network_g: str
    param_key_g: str | None = None
    strict_load_g: bool = True


class MetricGroup(Group):
    """``val.metrics.NAME``."""

    type: Literal["calculate_psnr", "calculate_ssim", "calculate_niqe"]
    crop_border: int | None = Field(None, ge=0)
    test_y_channel: bool = True

    @property
    def measure(self) -> str:
        """Its key in :data:`drct.evaluation.measures.MEASURES`."""
        name = self.type.removeprefix("calculate_")
        return name if self.test_y_channel or name == "niqe" else f"{name}_rgb"


class ValGroup(Group):
    """``val``: what is measured and saved."""

    save_img: bool = False
    suffix: str | None = None
    metrics: dict[str, MetricGroup] = {}


class TestFile(Group):
    """A published test option file."""

    __test__ = False  # no test of ours, whatever pytest thinks of the name

    name: Annotated[str, AfterValidator(folder_name)]
    scale: int = Field(ge=1)
    datasets: dict[str, DataSetGroup] = Field(min_length=1)
    network_g: dict[str, Any]
    path: PathGroup
    tile: TileGroup | None = None
    val: ValGroup = ValGroup()

    @property
    def crop(self) -> int:
        """Pixels that all metrics cut; raises :class:`OptionError` if they do not agree."""
        crops = {self.scale if metric.crop_border is None else metric.crop_border for metric in self.val.metrics.values()}
        if len(crops) > 1:
            raise OptionError(f"'{self.name}': all metrics must have the same crop_border, found {sorted(crops)}")
        return crops.pop() if crops else self.scale


# stand in published files and change nothing here
DEAD_KEYS = {
    "model_type": "what to test follows from network_g",
    "num_gpu": "use --device",
    "manual_seed": "testing has no randomness",
    "io_backend": "folders are read as they are",
    "pbar": "progress is shown on a terminal",
    "better": "known for each metric",
    "dist_params": "tests run in one process",
    "phase": "every set is tested on",
    "logger": "use --json",
    "print_network": "use 'drct explain cost'",
    "resume_state": "interrupted tests continue by themselves",
}


def read_test_file(path: Path) -> tuple[TestFile, list[str]]:
    """Read a published test option file (YAML).

    Returns:
        The options, and a warning for each key that has no effect, or whose default is not that of BasicSR.

    Raises:
        OptionError: the file cannot be read, a key is unknown (the nearest valid one is named), or a value is not possible.
    """
    data = read_option_file(path)
    if not isinstance(data, dict):
        raise OptionError(f"{path}: an option file is a mapping of keys to values, not {type(data).__name__}")
    if "train" in data:
        raise OptionError(f"{path} is a training option file: use 'drct train -opt {path}', or a test option file")
    data, places = without_keys(data, DEAD_KEYS)
    dead = dict.fromkeys(place.rpartition(".")[2] for place in places)  # each once
    try:
        file = TestFile.model_validate(data)
    except ValidationError as error:
        problem = first_problem(error, key_places(TestFile, {DataSetGroup: "test_1"}), branches=BRANCHES, expected=EXPECTED)
        raise OptionError(f"{path}: {problem}") from None
    for name, dataset in file.datasets.items():
        if dataset.dataroot_gt is None and dataset.dataroot_lq is None:
            raise OptionError(f"{path}: datasets.{name} has neither dataroot_gt nor dataroot_lq")
        if dataset.type == "SingleImageDataset" and dataset.dataroot_lq is None:
            raise OptionError(f"{path}: datasets.{name} is a SingleImageDataset and needs dataroot_lq")
    warnings = [f"'{key}' has no effect ({DEAD_KEYS[key]})" for key in dead]
    warnings += [
        f"'val.metrics.{name}.test_y_channel' is not given: it is measured on Y, where BasicSR takes RGB"
        for name, metric in file.val.metrics.items()
        if metric.type != "calculate_niqe" and "test_y_channel" not in metric.model_fields_set
    ]
    return file, [f"{path}: {warning}" for warning in warnings]
