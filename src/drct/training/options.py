"""Option files: the published YAML keys, typed, with a line per field.

Published files are accepted key for key. Keys that never had an effect are dropped with a warning; misspelt ones are errors that
name the nearest valid key. Our own additions are marked "(ours)".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from drct.checking import first_problem, folder_name, key_places, name_template, read_option_file, without_keys
from drct.degradation import DegradationOptions
from drct.errors import OptionError
from drct.networks.registry import options_without_effect
from drct.training.perceptual import PUBLISHED_WEIGHTS, check_layers

# stand in published files and change nothing here, wherever they appear
DEAD_KEYS: dict[str, str] = {
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
    "high_order_degradation": "a RealESRGANDataset degrades, and the other sets do not",
}

# of a RealESRGANDataset, though they stand at the top of the published files
REAL_KEYS = ("gt_size", "queue_size", "gt_usm", "l1_gt_usm", "percep_gt_usm", "gan_gt_usm")


def _numbers(value: Any) -> Any:
    """YAML reads 2e-4 as text; the published files rely on it being a number."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


# by which the published files of the networks here call three kinds of training: clean pairs, degraded ones, and against a GAN
ModelType = Literal[
    "DRCTModel",
    "HATModel",
    "SwinIRModel",
    "SRModel",
    "RealDRCTMSEModel",
    "RealHATMSEModel",
    "RealESRNetModel",
    "RealDRCTGANModel",
    "RealHATGANModel",
    "RealESRGANModel",
]
Number = Annotated[float, BeforeValidator(_numbers), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_numbers)]
Beta = Annotated[float, BeforeValidator(_numbers), Field(ge=0, lt=1)]


def _degradation(value: Any) -> Any:
    """A preset's name, or a mapping of degradation options."""
    if isinstance(value, str):
        return DegradationOptions.preset(value)
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise ValueError("the names of degradation options are words")
    return DegradationOptions(**value) if isinstance(value, dict) else value


class Options(BaseModel):
    """Base of all option groups: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Template = Annotated[str, AfterValidator(name_template)]


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
    tone_share: float = Field(
        0.0, ge=0, le=1, description="(ours) how many of all patches have their tones moved towards black, white or a colour"
    )
    fault_share: float = Field(
        0.0, ge=0, le=1, description="(ours) how many of all pairs may get noise, sharpening and JPEG errors, in LR and in GT alike"
    )
    leaves_share: float = Field(
        0.0, ge=0, le=1, description="(ours) how many of all patches are dead leaves: random discs and rectangles of plain colours"
    )
    clean_share: float = Field(
        0.0, ge=0, le=1, description="(ours) RealESRGANDataset: how many of all pairs are only reduced, not degraded"
    )
    crop_size: int = Field(
        400, gt=0, description="(ours) RealESRGANDataset: side of what is degraded, of which a patch is cut afterwards"
    )
    filename_tmpl: Template = Field("{}", description="how LR images are called; by {}, a final x4 (scale 4) is ignored")

    @model_validator(mode="before")
    @classmethod
    def _other_name(cls, data: Any) -> Any:
        """A RealESRGANDataset of BasicSR calls the same list ``meta_info``."""
        if isinstance(data, dict) and "meta_info" in data and "meta_info_file" not in data:
            return {"meta_info_file" if key == "meta_info" else key: value for key, value in data.items()}
        return data

    @model_validator(mode="after")
    def _additions_fit(self) -> TrainSet:
        if self.tone_share and self.dataroot_lq is not None:
            raise ValueError("tone_share and dataroot_lq exclude each other: tones are moved before LR is made and rounded")
        if self.leaves_share and self.dataroot_lq is not None:
            raise ValueError("leaves_share and dataroot_lq exclude each other: there are no LR files of dead leaves")
        if self.type == "ImageNetPairedDataset" and self.dataroot_lq is not None:
            raise ValueError("an ImageNetPairedDataset makes its LR images: leave out dataroot_lq, or use a PairedImageDataset")
        if self.fault_share and self.type == "RealESRGANDataset":
            raise ValueError("fault_share is for clean pairs: a RealESRGANDataset is degraded already")
        if self.clean_share and self.type != "RealESRGANDataset":
            raise ValueError(f"clean_share is for a RealESRGANDataset: all pairs of {self.type} are clean")
        return self


class ValSet(Options):
    """Images that are validated on, whole."""

    name: str = "val"
    type: Literal["PairedImageDataset", "GroundTruthDataset", "SingleImageDataset"] = "PairedImageDataset"
    dataroot_gt: str | None = None
    dataroot_lq: str | None = Field(None, description="all that a SingleImageDataset has: images to look at, without scores")
    filename_tmpl: Template = Field("{}", description="how LR images are called; by {}, a final x4 (scale 4) is ignored")
    max_images: int | None = Field(None, gt=0, description="(ours) validate on the first so many images only")
    degradation: Annotated[DegradationOptions | None, BeforeValidator(_degradation)] = Field(
        None, description="(ours) make LQ by a preset (real, web, camera) or by given degradation options"
    )
    seed: int = Field(0, ge=0, description="(ours) of the degradations, which are the same at each validation")

    @model_validator(mode="after")
    def _one_source(self) -> ValSet:
        single = self.type == "SingleImageDataset"
        if single and (self.dataroot_lq is None or self.dataroot_gt is not None or self.degradation is not None):
            raise ValueError("a SingleImageDataset has dataroot_lq and nothing else: neither dataroot_gt nor degradation")
        if not single and self.dataroot_gt is None:
            raise ValueError("key 'dataroot_gt' is missing")
        if self.degradation is not None and self.dataroot_lq is not None:
            raise ValueError("dataroot_lq and degradation exclude each other: one says where LQ lies, the other how to make it")
        return self


SETS: dict[type[BaseModel], str] = {TrainSet: "train", ValSet: "val_1"}  # what they are called in an option file


class Path_(Options):
    """Weights to start from."""

    pretrain_network_g: str | None = None
    param_key_g: str | None = None
    strict_load_g: bool = True
    skip_upsampler_g: bool = Field(False, description="(ours) take all but the upsampler, to go from one scale to another")
    resample_upsampler_g: bool = Field(
        False, description="(ours) take the upsampler too, averaged to this scale (pixelshuffledirect)"
    )
    pretrain_network_d: str | None = None
    param_key_d: str | None = "params"
    strict_load_d: bool = True
    resume_state: str | None = Field(None, description="default of --resume: auto, a checkpoint, or a folder of them")

    @model_validator(mode="after")
    def _weights_to_resample(self) -> Path_:
        for key in ("skip_upsampler_g", "resample_upsampler_g"):
            if getattr(self, key) and self.pretrain_network_g is None:
                raise ValueError(f"{key} needs pretrain_network_g: there is no upsampler to take or leave")
        return self


class Optimizer(Options):
    type: Literal["Adam", "AdamW", "Muon"] = Field("Adam", description="Muon is ours: further in short runs")
    lr: Number = Field(2e-4, gt=0)
    weight_decay: Number = Field(0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.99)


class Scheduler(Options):
    type: Literal["MultiStepLR", "CosineAnnealingLR"] = "MultiStepLR"
    milestones: tuple[Whole, ...] = ()
    gamma: Number = Field(0.5, gt=0)
    eta_min: Number = Field(0.0, ge=0, le=1, description="(ours) last learning rate relative to the first, for the cosine")


class PixelLoss(Options):
    type: Literal["L1Loss", "MSELoss", "CharbonnierLoss", "FrequencyLoss"] = "L1Loss"
    loss_weight: Number = Field(1.0, ge=0)
    reduction: Literal["mean"] = "mean"
    eps: Number | None = Field(None, gt=0, description="of CharbonnierLoss, default 1e-12")


class GridLossOptions(Options):
    type: Literal["GridLoss"] = "GridLoss"
    loss_weight: Number = Field(1.0, ge=0)


class PerceptualLossOptions(Options):
    type: Literal["PerceptualLoss"] = "PerceptualLoss"
    layer_weights: dict[str, Number] | None = Field(None, description="factor by layer; default: the published ones")
    vgg_type: Literal["vgg16", "vgg19"] = "vgg19"
    use_input_norm: bool = True
    range_norm: bool = False
    perceptual_weight: Number = Field(1.0, ge=0)
    style_weight: Number = Field(0.0, ge=0)
    criterion: Literal["l1", "l2", "fro"] = "l1"
    path: str | None = Field(None, description="(ours) weights of the network; default: vgg16 or vgg19 in the folder DRCT_WEIGHTS")
    shift: int = Field(
        0, ge=0, description="(ours) compare parts that are so many pixels smaller, at random places: no checkerboard"
    )

    @model_validator(mode="after")
    def _known_layers(self) -> PerceptualLossOptions:
        check_layers(self.vgg_type, self.layers)
        if self.perceptual_weight == self.style_weight == 0:
            raise ValueError("perceptual_weight and style_weight are both 0: leave perceptual_opt out instead")
        return self

    @property
    def layers(self) -> dict[str, float]:
        """Factor by layer."""
        return PUBLISHED_WEIGHTS[self.vgg_type] if self.layer_weights is None else self.layer_weights


class TeacherOptions(Options):
    network: str = Field(description="a model or a file of weights, of the same scale")
    weight: Number = Field(0.8, gt=0, le=1, description="share of the teacher in what pixels and frequencies are compared with")
    views: int = Field(
        1, ge=1, le=8, description="flips and rotations, drawn anew for each batch, over which the teacher is averaged"
    )


class GANLossOptions(Options):
    type: Literal["GANLoss"] = "GANLoss"
    gan_type: Literal["vanilla", "lsgan", "hinge", "relativistic"] = "vanilla"
    real_label_val: Number = 1.0
    fake_label_val: Number = 0.0
    loss_weight: Number = Field(0.1, ge=0)


class Discriminator(Options):
    type: Literal["UNetDiscriminatorSN"] = "UNetDiscriminatorSN"
    num_in_ch: Literal[3] = 3
    num_feat: int = Field(64, gt=0)
    skip_connection: bool = True


class Train(Options):
    ema_decay: Number = Field(0.999, ge=0, lt=1)
    optim_g: Optimizer = Optimizer()
    optim_d: Optimizer = Field(Optimizer(lr=1e-4), description="of the discriminator")
    scheduler: Scheduler = Scheduler()
    total_iter: Whole = Field(500_000, gt=0)
    warmup_iter: Whole = Field(-1, ge=-1)
    pixel_opt: PixelLoss | None = Field(PixelLoss(), description="without it L1Loss; ~ for none beside another loss")
    frequency_opt: PixelLoss | None = Field(None, description="(ours) a second loss beside pixel_opt")
    grid_opt: GridLossOptions | None = Field(None, description="(ours) against checkerboards, beside a perceptual loss")
    teacher_opt: TeacherOptions | None = Field(
        None, description="(ours) a trained network that stands for a part of the ground truth"
    )
    perceptual_opt: PerceptualLossOptions | None = None
    gan_opt: GANLossOptions | None = Field(None, description="needs network_d")
    net_d_iters: int = Field(1, ge=1, description="the network learns in each so many iterations; the discriminator always does")
    net_d_init_iters: int = Field(0, ge=0, description="iterations in which only the discriminator learns, at first")
    grad_clip: Number | None = Field(None, gt=0, description="(ours) largest norm of the gradient")
    accumulate: int = Field(1, ge=1, description="(ours) batches per optimizer step")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32", description="(ours) bf16 runs the network under autocast; auto does where the device multiplies bf16 faster"
    )
    compile: bool = Field(False, description="(ours) torch.compile")
    linear_start: bool = Field(False, description="(ours) begin as a linear interpolation of the input instead of noise")

    @model_validator(mode="after")
    def _has_a_loss(self) -> Train:
        compared = self.pixel_opt or self.frequency_opt or self.grid_opt
        if not (compared or self.perceptual_opt or self.gan_opt):
            raise ValueError("pixel_opt is empty, and there is no other loss: leave it out for an L1Loss, or fill it")
        if self.teacher_opt is not None and not compared:
            raise ValueError("teacher_opt needs pixel_opt or frequency_opt, which compare with what it makes")
        return self

    @model_validator(mode="after")
    def _fits_discriminator(self) -> Train:
        if self.optim_d.type == "Muon":
            raise ValueError("optim_d cannot be Muon: spectral norm already shapes the discriminator's matrices; use Adam or AdamW")
        return self


class Metric(Options):
    type: Literal["calculate_psnr", "calculate_ssim", "calculate_lpips"]
    crop_border: int | None = Field(None, ge=0, description="border that is not counted; default is the scale")
    test_y_channel: bool = Field(True, description="without effect on LPIPS, which is of RGB")
    better: Literal["higher", "lower"] = Field(
        default_factory=lambda given: "lower" if given.get("type") == "calculate_lpips" else "higher",
        description="what the best weights are chosen by; default: lower for LPIPS, higher for the others",
    )


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

    name: Annotated[str, AfterValidator(folder_name)] = Field(description="the run goes to runs/NAME")
    model_type: ModelType | None = Field(
        None, description="checked only: the kind of training follows from the training set and from gan_opt"
    )
    scale: int = Field(gt=0)
    manual_seed: int = Field(0, ge=0, lt=1 << 32)  # with iteration and rank it must stay below 64 bits
    degradation: DegradationOptions | None = Field(
        None, description="of a RealESRGANDataset; the published files have its keys here at the top and in datasets.train"
    )
    gt_size: int | None = Field(None, gt=0, description="of a RealESRGANDataset; default: that of datasets.train")
    queue_size: int = Field(180, gt=0, description="pairs in the pool of a RealESRGANDataset, a multiple of the batch")
    gt_usm: bool = Field(True, description="stage one: sharpen the ground truth")
    l1_gt_usm: bool = Field(True, description="stage two: pixel losses look at sharpened ground truth")
    percep_gt_usm: bool = Field(True, description="stage two: and the perceptual loss")
    gan_gt_usm: bool = Field(False, description="stage two: and the discriminator")
    datasets: dict[str, TrainSet | ValSet]
    network_g: dict[str, Any]
    network_d: Discriminator | None = None
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
                try:
                    sets[key] = TrainSet.model_validate(value) if key == "train" else ValSet.model_validate(value)
                except ValidationError as error:
                    raise _within(("datasets", key), error) from None
            data = {**data, "datasets": sets}
        return data

    @model_validator(mode="before")
    @classmethod
    def _gather_degradation(cls, data: Any) -> Any:
        """Published files spread the degradation over the top and the training set; a preset's name may stand instead."""
        train = data.get("datasets", {}).get("train") if isinstance(data, dict) and isinstance(data.get("datasets"), dict) else None
        if not isinstance(train, dict):
            return data
        spread = [key for key in DegradationOptions.model_fields if key in data or key in train]
        given = data.get("degradation")
        if train.get("type") != "RealESRGANDataset":
            if spread or given is not None:
                raise ValueError(f"'{spread[0] if spread else 'degradation'}' needs datasets.train.type RealESRGANDataset")
            return data
        if given is not None and spread:
            raise ValueError(f"'degradation' and '{spread[0]}' exclude each other: write all degradation options in one place")
        if twice := [key for key in spread if key in data and key in train and data[key] != train[key]]:
            raise ValueError(
                f"'{twice[0]}' is {data[twice[0]]} at the top, but {train[twice[0]]} in datasets.train: write it in one place"
            )
        data = {**data, "datasets": {**data["datasets"], "train": {k: v for k, v in train.items() if k not in spread}}}
        values = {key: train[key] if key in train else data[key] for key in spread}
        kept = {key: value for key, value in data.items() if key not in spread}
        return {**kept, "degradation": _degradation(values if given is None else given)}

    @model_validator(mode="after")
    def _fits(self) -> TrainOptions:
        if "train" not in self.datasets:
            raise ValueError("datasets has no entry 'train'")
        names = [s.name for s in self.val_sets.values()]
        if repeated := [key for key, s in self.val_sets.items() if names.count(s.name) > 1]:
            raise ValueError(
                f"{' and '.join(repeated)} have one name, '{self.val_sets[repeated[0]].name}': give each its own 'name'"
            )
        if self.patch_size % self.scale:
            raise ValueError(f"gt_size {self.patch_size} is not a multiple of scale {self.scale}")
        if "type" not in self.network_g:
            raise ValueError("network_g has no 'type'")
        self._fits_network()
        if (self.network_d is None) != (self.train.gan_opt is None):
            given, missing = ("network_d", "train.gan_opt") if self.train.gan_opt is None else ("train.gan_opt", "network_d")
            raise ValueError(f"{given} needs {missing}: a discriminator and its loss go together")
        if self.train.perceptual_opt is not None and self.train.perceptual_opt.shift > self.patch_size // 2:
            raise ValueError(
                f"perceptual_opt.shift {self.train.perceptual_opt.shift} is more than half of gt_size {self.patch_size}"
            )
        if self.network_d is not None and self.patch_size % 8:
            raise ValueError(f"gt_size {self.patch_size} is not a multiple of 8, as the discriminator needs it")
        if self.model_type is not None and self.model_type.endswith("GANModel") and self.network_d is None:
            raise ValueError(f"model_type {self.model_type} needs network_d and train.gan_opt")
        self._fits_real()
        return self

    def _fits_network(self) -> None:
        """What networks cannot be trained with; all else they check by themselves."""
        if (channels := self.network_g.get("in_chans", 3)) != 3:
            raise ValueError(f"network_g.in_chans is {channels!r}, but images are trained on in RGB: it must be 3")

    def _fits_real(self) -> None:
        data, real = self.train_set, self.train_set.type == "RealESRGANDataset"
        if self.model_type is not None and self.model_type.startswith("Real") != real:
            raise ValueError(f"model_type {self.model_type} does not go with datasets.train.type {data.type}")
        if not real:
            if given := [key for key in REAL_KEYS if key in self.model_fields_set]:
                raise ValueError(f"'{given[0]}' at the top needs datasets.train.type RealESRGANDataset")
            return
        if data.dataroot_lq is not None:
            raise ValueError("a RealESRGANDataset makes its LQ: remove datasets.train.dataroot_lq")
        if data.crop_size % self.scale or data.crop_size < self.patch_size:
            raise ValueError(
                f"crop_size {data.crop_size} must be a multiple of scale {self.scale} and at least gt_size {self.patch_size}"
            )
        if self.queue_size % data.batch_size_per_gpu:
            raise ValueError(f"queue_size {self.queue_size} is not a multiple of batch_size_per_gpu {data.batch_size_per_gpu}")

    @property
    def patch_size(self) -> int:
        """Side of a training patch in GT pixels."""
        return self.train_set.gt_size if self.gt_size is None else self.gt_size

    @property
    def train_set(self) -> TrainSet:
        found = self.datasets["train"]
        assert isinstance(found, TrainSet)
        return found

    @property
    def val_sets(self) -> dict[str, ValSet]:
        """By their keys in ``datasets``."""
        return {key: s for key, s in self.datasets.items() if isinstance(s, ValSet)}


def parse_options(data: Any, source: str = "options") -> tuple[TrainOptions, list[str]]:
    """Check option values; returns the options and warnings about keys without effect.

    Raises:
        OptionError: naming the key, the value and the nearest valid key; ``source`` says in which file.
    """
    if not isinstance(data, dict):
        raise OptionError(f"{source}: an option file is a mapping of keys to values, not {type(data).__name__}")
    data, dead = without_keys(data, DEAD_KEYS)
    warnings = [f"'{place}' has no effect ({DEAD_KEYS[place.rpartition('.')[2]]})" for place in dead]
    try:
        options = TrainOptions.model_validate(data)
    except ValidationError as error:
        problem = first_problem(error, key_places(TrainOptions, SETS), noun="key", branches=("TrainSet", "ValSet"))
        raise OptionError(f"{source}: {problem}") from None
    except OptionError as error:  # those of the degradation
        raise OptionError(f"{source}: {error}") from None
    train, train_set = options.train, options.train_set
    if options.network_d is None:
        alone = ("optim_d", "net_d_iters", "net_d_init_iters")
        warnings += [f"'train.{key}' has no effect (there is no network_d)" for key in alone if key in train.model_fields_set]
        if options.path.pretrain_network_d is not None:
            warnings.append("'path.pretrain_network_d' has no effect (there is no network_d)")
    if train.linear_start and options.path.pretrain_network_g is not None:
        warnings.append("'train.linear_start' has no effect (path.pretrain_network_g gives the weights)")
    if train_set.type == "RealESRGANDataset":
        gan = train.gan_opt is not None
        other = {"gt_usm": False} if gan else {"l1_gt_usm": False, "percep_gt_usm": False, "gan_gt_usm": True}
        reason = (
            "the GAN stage degrades sharpened ground truth, and each loss has a key of its own" if gan else "it is of the GAN stage"
        )
        given = [key for key, value in other.items() if key in options.model_fields_set and getattr(options, key) is value]
        warnings += [f"'{key}' has no effect ({reason})" for key in given]
    for key in ("pixel_opt", "frequency_opt"):
        loss = getattr(train, key)
        if loss is not None and loss.type != "CharbonnierLoss" and "eps" in loss.model_fields_set:
            warnings.append(f"'train.{key}.eps' has no effect (it is of CharbonnierLoss)")
    if train.gan_opt is not None and train.gan_opt.gan_type == "hinge":
        given = [key for key in ("real_label_val", "fake_label_val") if key in train.gan_opt.model_fields_set]
        warnings += [f"'train.gan_opt.{key}' has no effect (hinge has no labels)" for key in given]
    sets: list[tuple[str, TrainSet | ValSet]] = [("train", train_set), *options.val_sets.items()]
    for place, data_set in sets:
        if data_set.dataroot_lq is None and data_set.filename_tmpl != "{}":
            warnings.append(f"'datasets.{place}.filename_tmpl' has no effect (there is no dataroot_lq)")
        if isinstance(data_set, ValSet) and data_set.degradation is None and "seed" in data_set.model_fields_set:
            warnings.append(f"'datasets.{place}.seed' has no effect (nothing is degraded)")
    if train_set.type != "RealESRGANDataset" and "crop_size" in train_set.model_fields_set:
        warnings.append("'datasets.train.crop_size' has no effect (it is of a RealESRGANDataset)")
    for kind, keys in (("MultiStepLR", ("milestones", "gamma")), ("CosineAnnealingLR", ("eta_min",))):
        given = [key for key in keys if train.scheduler.type != kind and key in train.scheduler.model_fields_set]
        warnings += [f"'train.scheduler.{key}' has no effect (it is of {kind})" for key in given]
    warnings += [
        f"'{place}' is not given: it is {here}, where BasicSR takes {there}" for place, here, there in _other_defaults(options)
    ]
    unread = options_without_effect(options.network_g)
    warnings += [f"'network_g.{key}' has no effect (the network never read it)" for key in unread]
    # published files hold these two, mostly switched off
    if options.val.save_img:
        warnings.append("'val.save_img' has no effect (each validation writes a sheet of crops; 'drct test' saves whole images)")
    if options.val.suffix is not None:
        warnings.append("'val.suffix' has no effect (no images are saved)")
    return options, [f"{source}: {w}" for w in warnings]


def _other_defaults(options: TrainOptions) -> Iterator[tuple[str, str, str]]:
    """Keys that are missing and would be something else in BasicSR: where they stand, what they are here, and what there."""
    train = options.train
    if "ema_decay" not in train.model_fields_set:
        yield "train.ema_decay", f"{train.ema_decay:g}", "0"
    if "pixel_opt" not in train.model_fields_set and (train.perceptual_opt is not None or train.gan_opt is not None):
        yield "train.pixel_opt", "an L1Loss of weight 1", "none, as ~ does here"
    for key in ("optim_g", "optim_d"):
        optimizer: Optimizer = getattr(train, key)
        # Muon is no optimizer of BasicSR, and optim_d counts beside network_d only
        if key not in train.model_fields_set or optimizer.type == "Muon" or (key == "optim_d" and options.network_d is None):
            continue
        if "betas" not in optimizer.model_fields_set:
            yield f"train.{key}.betas", str([*optimizer.betas]), "[0.9, 0.999]"
        if optimizer.type == "AdamW" and "weight_decay" not in optimizer.model_fields_set:
            yield f"train.{key}.weight_decay", f"{optimizer.weight_decay:g}", "0.01"
    if train.scheduler.type == "MultiStepLR" and train.scheduler.milestones and "gamma" not in train.scheduler.model_fields_set:
        yield "train.scheduler.gamma", f"{train.scheduler.gamma:g}", "0.1"
    if train.gan_opt is not None and "loss_weight" not in train.gan_opt.model_fields_set:
        yield "train.gan_opt.loss_weight", f"{train.gan_opt.loss_weight:g}", "1"
    for name, metric in options.val.metrics.items():
        if metric.type != "calculate_lpips" and "test_y_channel" not in metric.model_fields_set:
            yield f"val.metrics.{name}.test_y_channel", "measured on Y", "RGB"


def _within(where: tuple[str, ...], error: ValidationError) -> ValidationError:
    """The same error, which tells where in the whole file its options stand."""
    details = [
        InitErrorDetails(type=e["type"], loc=(*where, *e["loc"]), input=e["input"], ctx=e.get("ctx", {})) for e in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, details)


def read_options(path: str | Path) -> tuple[TrainOptions, list[str]]:
    """Read an option file (YAML); see :func:`parse_options`."""
    return parse_options(read_option_file(Path(path)), str(path))
