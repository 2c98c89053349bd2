"""Option files: the published YAML keys, typed, with a line per field.

Published files are accepted key for key. Keys that never had an effect are dropped with a warning; misspelt ones are errors that
name the nearest valid key. Our own additions are marked "(ours)".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from drct.errors import OptionError, did_you_mean

# stand in published files and change nothing here, wherever they appear
DEAD_KEYS: dict[str, str] = {
    "model_type": "the kind of training follows from the datasets and networks",
    "num_gpu": "the number of processes is torchrun's",
    "dist_params": "the backend follows from the device",
    "prefetch_mode": "batches are always prefetched",
    "use_shuffle": "training always shuffles; validation never does",
    "io_backend": "folders, packs and LMDB are told apart by looking",
    "pbar": "progress is shown on a terminal",
    "use_tb_logger": "use --tensorboard",
    "wandb": "not supported; the JSON lines log holds the same numbers",
    "print_network": "use 'drct explain cost'",
    "find_unused_parameters": "all parameters are used",
}


def _numbers(value: Any) -> Any:
    """YAML reads 2e-4 as text; the published files rely on it being a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_numbers)]
Whole = Annotated[int, BeforeValidator(_numbers)]


class Options(BaseModel):
    """Base of all option groups: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainSet(Options):
    """Where training patches come from."""

    name: str = "train"
    type: Literal["PairedImageDataset", "ImageNetPairedDataset", "GroundTruthDataset", "RealESRGANDataset"] = "GroundTruthDataset"
    dataroot_gt: str
    dataroot_lq: str | None = Field(None, description="LR folder; without it LR is made from GT by the MATLAB bicubic")
    meta_info_file: str | None = Field(None, description="text file whose lines begin with the names of the images to use")
    gt_size: int = Field(256, gt=0, description="side of a GT patch in pixels; must be a multiple of the scale")
    use_hflip: bool = True
    use_rot: bool = True
    num_worker_per_gpu: int = Field(2, ge=0)
    batch_size_per_gpu: int = Field(4, gt=0)
    dataset_enlarge_ratio: int = Field(1, ge=1, description="accepted; epochs have no effect on the order of patches here")
    by_area: bool = Field(False, description="(ours) draw images in proportion to their area instead of equally often")
    filename_tmpl: str = "{}"


class ValSet(Options):
    """Images that are validated on, whole."""

    name: str = "val"
    type: Literal["PairedImageDataset", "GroundTruthDataset"] = "PairedImageDataset"
    dataroot_gt: str
    dataroot_lq: str | None = None
    filename_tmpl: str = "{}"
    max_images: int | None = Field(None, gt=0, description="(ours) validate on the first so many images only")


class Path_(Options):
    """Weights to start from."""

    pretrain_network_g: str | None = None
    param_key_g: str | None = "params_ema"
    strict_load_g: bool = True
    skip_upsampler_g: bool = Field(False, description="(ours) take all but the upsampler, to go from one scale to another")
    resample_upsampler_g: bool = Field(
        False, description="(ours) take the upsampler too, averaged to this scale (pixelshuffledirect)"
    )
    pretrain_network_d: str | None = None
    param_key_d: str | None = "params"
    strict_load_d: bool = True
    resume_state: str | None = None


class Optimizer(Options):
    type: Literal["Adam", "AdamW"] = "Adam"
    lr: Number = Field(2e-4, gt=0)
    weight_decay: Number = Field(0.0, ge=0)
    betas: tuple[Number, Number] = (0.9, 0.99)


class Scheduler(Options):
    type: Literal["MultiStepLR", "CosineAnnealingLR"] = "MultiStepLR"
    milestones: tuple[Whole, ...] = ()
    gamma: Number = 0.5
    eta_min: Number = Field(0.0, ge=0, le=1, description="(ours) last learning rate relative to the first, for the cosine")


class PixelLoss(Options):
    type: Literal["L1Loss", "MSELoss", "CharbonnierLoss", "FrequencyLoss"] = "L1Loss"
    loss_weight: Number = Field(1.0, ge=0)
    reduction: Literal["mean"] = "mean"


class Train(Options):
    ema_decay: Number = Field(0.999, ge=0, lt=1)
    optim_g: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()
    total_iter: Whole = Field(500_000, gt=0)
    warmup_iter: Whole = Field(-1, ge=-1)
    pixel_opt: PixelLoss = PixelLoss()
    frequency_opt: PixelLoss | None = Field(None, description="(ours) a second loss beside pixel_opt")
    grad_clip: Number | None = Field(None, gt=0, description="(ours) largest norm of the gradient")
    accumulate: int = Field(1, ge=1, description="(ours) batches per optimizer step")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="(ours) bf16 runs the network under autocast")
    compile: bool = Field(False, description="(ours) torch.compile")
    linear_start: bool = Field(False, description="(ours) begin as a linear interpolation of the input instead of noise")


class Metric(Options):
    type: Literal["calculate_psnr", "calculate_ssim"]
    crop_border: int | None = Field(None, ge=0, description="border that is not counted; default is the scale")
    test_y_channel: bool = True
    better: Literal["higher", "lower"] = "higher"


class Val(Options):
    val_freq: Whole = Field(5000, gt=0)
    save_img: bool = False
    suffix: str | None = None
    metrics: dict[str, Metric] = {}


class Logger(Options):
    print_freq: Whole = Field(100, gt=0)
    save_checkpoint_freq: Whole = Field(5000, gt=0)


class TrainOptions(Options):
    """One option file."""

    name: str
    scale: int = Field(gt=0)
    manual_seed: int = 0
    datasets: dict[str, TrainSet | ValSet]
    network_g: dict[str, Any]
    path: Path_ = Path_()
    train: Train
    val: Val = Val()
    logger: Logger = Logger()

    @model_validator(mode="before")
    @classmethod
    def _type_datasets(cls, data: Any) -> Any:
        """The sets are told apart by their key: ``train`` and ``val...``."""
        if isinstance(data, dict) and isinstance(data.get("datasets"), dict):
            sets: dict[str, Any] = {}
            for key, value in data["datasets"].items():
                sets[key] = TrainSet.model_validate(value) if key == "train" else ValSet.model_validate(value)
            data = {**data, "datasets": sets}
        return data

    @model_validator(mode="after")
    def _fits(self) -> TrainOptions:
        if "train" not in self.datasets:
            raise ValueError("datasets has no entry 'train'")
        if self.train_set.gt_size % self.scale:
            raise ValueError(f"gt_size {self.train_set.gt_size} is not a multiple of scale {self.scale}")
        if "type" not in self.network_g:
            raise ValueError("network_g has no 'type'")
        return self

    @property
    def train_set(self) -> TrainSet:
        found = self.datasets["train"]
        assert isinstance(found, TrainSet)
        return found

    @property
    def val_sets(self) -> list[ValSet]:
        return [s for s in self.datasets.values() if isinstance(s, ValSet)]


def parse_options(data: Any, source: str = "options") -> tuple[TrainOptions, list[str]]:
    """Check option values; returns the options and warnings about keys without effect.

    Raises:
        OptionError: naming the key, the value and the nearest valid key; ``source`` says in which file.
    """
    if not isinstance(data, dict):
        raise OptionError(f"{source}: an option file is a mapping of keys to values, not {type(data).__name__}")
    warnings: list[str] = []
    data = _drop_dead(data, "", warnings)
    try:
        return TrainOptions.model_validate(data), [f"{source}: {w}" for w in warnings]
    except ValidationError as error:
        raise OptionError(f"{source}: {describe(error)}") from None


def _drop_dead(data: dict[str, Any], prefix: str, warnings: list[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in data.items():
        if key in DEAD_KEYS:
            warnings.append(f"'{prefix}{key}' has no effect ({DEAD_KEYS[key]})")
        elif isinstance(value, dict) and key != "network_g":
            kept[key] = _drop_dead(value, f"{prefix}{key}.", warnings)
        else:
            kept[key] = value
    return kept


def describe(error: ValidationError) -> str:
    """The first problem of a validation error in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("TrainSet", "ValSet"))
    if first["type"] == "extra_forbidden":
        known = {name for group in _groups(TrainOptions) for name in group.model_fields}
        return f"key '{where}' is unknown{did_you_mean(where.rsplit('.', 1)[-1], known)}"
    if first["type"] == "missing":
        return f"key '{where}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    shown = f" (found {first['input']!r})" if where and not isinstance(first["input"], dict) else ""
    return f"{where + ': ' if where else ''}{message}{shown}"


def _groups(root: type[BaseModel]) -> list[type[BaseModel]]:
    return [root, TrainSet, ValSet, Path_, Optimizer, Scheduler, PixelLoss, Train, Metric, Val, Logger]


def read_options(path: str | Path) -> tuple[TrainOptions, list[str]]:
    """Read an option file (YAML); see :func:`parse_options`."""
    try:
        import yaml
    except ImportError as error:
        from drct.errors import MissingDependencyError

        raise MissingDependencyError("option files need PyYAML: pip install 'drct[train]'") from error
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise OptionError(f"{path} is not valid YAML: {line}") from None
    return parse_options(data, str(path))
