"""The training loop: batch, loss, step, log, validate, save. Read :func:`train` from top to bottom."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from drct.datasets.loader import PatchSet, batches
from drct.datasets.sources import EnlargedSource, check_pairs, open_source
from drct.engine.accelerate import accelerate
from drct.errors import CheckpointError, DeviceError, Error, OptionError
from drct.networks import SuperResolutionNetwork, create_network
from drct.training.checkpoint import State, list_states, load_state, save_state
from drct.training.ema import EMA
from drct.training.linear_start import linear_start, resample_tail
from drct.training.log import Log, draw_curve
from drct.training.losses import LOSSES
from drct.training.options import TrainOptions
from drct.training.schedule import Schedule
from drct.training.validation import ValidationSet, save_sheet, validate

BAD_STEPS = 10  # so many non-finite steps in a row end the run


class TrainingError(Error):
    """Training cannot go on."""

    code = "training"


@dataclasses.dataclass
class TrainResult:
    """What a run left behind."""

    folder: Path
    iteration: int
    best: dict[str, float]
    interrupted: bool


@dataclasses.dataclass(frozen=True)
class Process:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def train(
    options: TrainOptions,
    folder: str | Path | None = None,
    *,
    resume: str | None = None,
    device: str = "auto",
    echo: Callable[[str], None] = print,
    stop_after: int | None = None,
    tensorboard: bool = False,
) -> TrainResult:
    """Train a network as an option file says.

    Args:
        options: from :func:`drct.training.options.read_options`.
        folder: where checkpoints, log, sheets and curve go; default ``runs/NAME``.
        resume: ``"auto"`` continues from the newest checkpoint in ``folder`` if there is one, a path from that checkpoint.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        echo: receives the lines for the console, in the main process only.
        stop_after: leave (with a checkpoint) after so many iterations of this call.
        tensorboard: write event files beside the log.

    Raises:
        OptionError, DataError, CheckpointError, DeviceError: before the first step.
        TrainingError: ten steps in a row were not finite; a checkpoint of before stands in the folder.
    """
    folder = Path(folder or Path("runs") / options.name)
    with _processes(device) as process:
        say = echo if process.is_main else _silent
        run = Run(options, folder, process, say)
        if resume:
            run.resume(folder if resume == "auto" else Path(resume))
        elif list_states(folder):
            raise OptionError(f"{folder} holds checkpoints of an earlier run: add --resume auto, or choose another name")
        return run.go(stop_after, tensorboard)


class Run:
    """A run's parts, built once from the options; the loop is :meth:`go`."""

    def __init__(self, options: TrainOptions, folder: Path, process: Process, say: Callable[[str], None]) -> None:
        self.options, self.folder, self.process, self.say = options, folder, process, say
        t, data = options.train, options.train_set
        torch.manual_seed(options.manual_seed)

        gt = open_source(data.dataroot_gt, data.meta_info_file)
        lq = None if data.dataroot_lq is None else open_source(data.dataroot_lq)
        if lq is not None:
            check_pairs(gt, lq, options.scale)
        if data.type == "ImageNetPairedDataset":
            gt = EnlargedSource(gt, data.gt_size)
        self.patches = PatchSet(
            gt,
            lq,
            options.scale,
            data.gt_size,
            options.manual_seed,
            by_area=data.by_area,
            hflip=data.use_hflip,
            rotate=data.use_rot,
        )
        if data.type != "ImageNetPairedDataset":
            self.patches.check()
        self.val_sets = [ValidationSet(v, options.scale) for v in options.val_sets] if process.is_main else []

        self.network = build_network(options, say)
        self.network.to(process.device)
        if process.device.type == "cpu":
            for line in accelerate(self.network):
                say(line)
        self.ema = EMA(self.network, t.ema_decay) if t.ema_decay > 0 else None
        model: nn.Module = torch.compile(self.network) if t.compile else self.network  # type: ignore[assignment]
        if process.world_size > 1:
            model = nn.parallel.DistributedDataParallel(model, [process.device] if process.device.type == "cuda" else None)
        self.model = model
        kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[t.optim_g.type]
        self.optimizer = kind(
            self.network.parameters(), lr=t.optim_g.lr, betas=t.optim_g.betas, weight_decay=t.optim_g.weight_decay, fused=True
        )
        self.schedule = Schedule(
            t.scheduler.type,
            t.total_iter,
            max(0, t.warmup_iter),
            tuple(t.scheduler.milestones),
            t.scheduler.gamma,
            t.scheduler.eta_min,
        )
        self.losses = [LOSSES[loss.type](loss.loss_weight) for loss in (t.pixel_opt, t.frequency_opt) if loss is not None]
        self.iteration = 0
        self.best: dict[str, float] = {}
        self.stop = False

    # ---------------------------------------------------------------------------------------------- the loop

    def go(self, stop_after: int | None = None, tensorboard: bool = False) -> TrainResult:
        o, t = self.options, self.options.train
        end = t.total_iter if stop_after is None else min(t.total_iter, self.iteration + stop_after)
        log = Log(self.folder, self.process.is_main, self.iteration, tensorboard)
        loader = batches(
            self.patches,
            self.iteration * t.accumulate,
            o.train_set.batch_size_per_gpu,
            rank=self.process.rank,
            world_size=self.process.world_size,
            workers=o.train_set.num_worker_per_gpu,
        )
        images = o.train_set.batch_size_per_gpu * t.accumulate * self.process.world_size
        bad, total, since, started = 0, 0.0, self.iteration, time.perf_counter()
        self.model.train()
        with _stop_signals(self):
            while self.iteration < end and not self.stop:
                # random numbers (stochastic depth) are a function of the iteration, so resuming needs no generator state
                torch.manual_seed((o.manual_seed * 1_000_003 + self.iteration) * 4099 + self.process.rank)
                rate = self.schedule(self.iteration) * t.optim_g.lr
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                loss = self._gradients(loader)
                norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), t.grad_clip or math.inf)
                # every process sees the same averaged gradient, so all skip together
                if not bool(torch.isfinite(norm)):
                    self.optimizer.zero_grad(set_to_none=True)
                    bad += 1
                    log.line({"iteration": self.iteration, "skipped": "gradient is not finite", "in_a_row": bad})
                    if bad == BAD_STEPS:
                        self._save()
                        raise TrainingError(
                            f"{BAD_STEPS} steps in a row were not finite; {list_states(self.folder)[-1]} holds the weights of "
                            "before: lower the learning rate or set grad_clip"
                        )
                    self.iteration += 1
                    continue
                bad = 0
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                if self.ema is not None:
                    self.ema.update(self.network)
                self.iteration += 1
                total += loss

                if self.iteration % o.logger.print_freq == 0 or self.iteration == end:
                    seconds = time.perf_counter() - started
                    steps = self.iteration - since
                    record = {
                        "iteration": self.iteration,
                        "loss": total / steps,
                        "lr": rate,
                        "images_per_second": images * steps / seconds,
                    }
                    log.line(record)
                    left = (t.total_iter - self.iteration) * seconds / steps
                    self.say(
                        f"{self.iteration:>8}/{t.total_iter}  loss {total / steps:.5f}  lr {rate:.2e}  "
                        f"{steps / seconds:.2f} it/s  {_duration(left)} left"
                    )
                    total, since, started = 0.0, self.iteration, time.perf_counter()
                if self.iteration % o.val.val_freq == 0 or self.iteration == t.total_iter:
                    self._validate(log)
                    started += time.perf_counter() - self._paused
                if self.iteration % o.logger.save_checkpoint_freq == 0:
                    self._save()
        loader.close()  # type: ignore[attr-defined]
        self._save()
        return TrainResult(self.folder, self.iteration, self.best, self.iteration < t.total_iter)

    def _gradients(self, loader: Any) -> float:
        """Forward and backward of one step's batches; returns the mean loss."""
        t, device = self.options.train, self.process.device
        total = torch.zeros((), device=device)
        for micro in range(t.accumulate):
            lq, gt = self.patches.finish(next(loader), device)
            last = micro == t.accumulate - 1
            wait = nullcontext() if last or self.process.world_size == 1 else self.model.no_sync()  # type: ignore[operator]
            with wait:
                with torch.autocast(device.type, torch.bfloat16, enabled=t.precision == "bf16"):
                    sr = self.model(lq)
                loss = torch.stack([criterion(sr.float(), gt) for criterion in self.losses]).sum() / t.accumulate
                loss.backward()
            total += loss.detach()
        return float(total)

    # ---------------------------------------------------------------------------------------------- saving

    def _validate(self, log: Log) -> None:
        self._paused = time.perf_counter()
        if self.process.is_main and self.val_sets and self.options.val.metrics:
            self.network.eval()
            if self.ema is not None:
                self.ema.swap(self.network)
            bf16 = self.options.train.precision == "bf16"
            scores = {v.name: validate(self.network, v, self.options.val.metrics, self.process.device, bf16) for v in self.val_sets}
            log.line({"iteration": self.iteration, "validation": scores})
            for name, values in scores.items():
                self.say(f"  {name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))
            metric, rule = next(iter(self.options.val.metrics.items()))
            value = scores[self.val_sets[0].name][metric]
            sign = 1 if rule.better == "higher" else -1
            if sign * value > sign * self.best.get(metric, -sign * math.inf):
                self.best = {metric: value, "iteration": float(self.iteration)}
                self._save_weights("best")
            sheet = self.folder / "sheets" / f"{self.iteration:08d}.png"
            sheet.parent.mkdir(exist_ok=True)
            save_sheet(self.network, self.val_sets[0], sheet, self.process.device)
            if self.ema is not None:
                self.ema.swap(self.network)
            draw_curve(self.folder)
            self.network.train()
        if self.process.world_size > 1:
            dist.barrier()

    def _save(self) -> None:
        if self.process.is_main:
            state = State(
                iteration=self.iteration,
                network=self.network.state_dict(),
                ema={} if self.ema is None else self.ema.shadow,
                ema_updates=0 if self.ema is None else self.ema.updates,
                optimizer=self.optimizer.state_dict(),
                best=self.best,
                options_sha256=fingerprint(self.options),
            )
            save_state(state, self.folder)
            if self.ema is not None:
                self.ema.swap(self.network)
            self._save_weights("latest")
            if self.ema is not None:
                self.ema.swap(self.network)

    def _save_weights(self, name: str) -> None:
        """Write the network as it stands, that is with the averaged weights swapped in, as ``NAME.safetensors``."""
        from drct.weights import save_network

        note = f"{self.options.name}, iteration {self.iteration}"
        save_network(self.network, self.folder / f"{name}.safetensors", training=note)

    def resume(self, where: Path) -> None:
        """Take over the newest checkpoint of a folder, or a given one."""
        if where.is_dir() or not where.suffix:
            states = list_states(where) if where.is_dir() else []
            if not states:
                self.say(f"no checkpoint in {where}: starting from the beginning")
                return
            where = states[-1]
        state = load_state(where)
        if state.options_sha256 != fingerprint(self.options):
            raise CheckpointError(
                f"{where} was made with other options for network, data or optimizer: resume with the same option file"
            )
        self.network.load_state_dict(state.network)
        self.optimizer.load_state_dict(state.optimizer)
        if self.ema is not None:
            for name, value in state.ema.items():
                self.ema.shadow[name].copy_(value)
            self.ema.updates = state.ema_updates
        self.iteration, self.best = state.iteration, state.best
        self.say(f"resumed {where.name} at iteration {state.iteration}")


def build_network(options: TrainOptions, say: Callable[[str], None]) -> SuperResolutionNetwork:
    """The network of an option file, with its starting weights."""
    chosen = dict(options.network_g)
    kind = str(chosen.pop("type"))
    network = create_network(kind.lower(), scale=options.scale, **chosen)
    path = options.path
    if path.pretrain_network_g is not None:
        from drct.weights import detect, find_model, load_into, read_weights

        file = Path(path.pretrain_network_g)
        weights = read_weights(file if file.suffix else find_model(path.pretrain_network_g), key=path.param_key_g)
        skip = path.skip_upsampler_g or path.resample_upsampler_g
        scale = int(detect(weights.tensors)[1].get("upscale", options.scale))
        if not skip and scale != options.scale:
            skip = True
            say(f"warning: {path.pretrain_network_g} is of another scale: loading all but the upsampler")
        say(str(load_into(network, weights, strict=path.strict_load_g, skip_upsampler=skip)))
        if path.resample_upsampler_g:
            resample_tail(network, weights.tensors["upsample.0.weight"], weights.tensors["upsample.0.bias"], scale)
    elif options.train.linear_start:
        linear_start(network)
    return network


def fingerprint(options: TrainOptions) -> str:
    """Hash of the options that a resumed run must share with the one it continues."""
    fixed: dict[str, Any] = options.model_dump(mode="json", include={"scale", "manual_seed", "network_g", "datasets", "train"})
    fixed["datasets"] = fixed["datasets"]["train"]
    fixed["datasets"].pop("num_worker_per_gpu")
    for free in ("total_iter", "scheduler", "compile", "precision"):
        fixed["train"].pop(free)
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _silent(line: str) -> None:
    """Takes the console lines of all processes but the first."""


def _duration(seconds: float) -> str:
    minutes = int(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"


class _processes(AbstractContextManager[Process]):
    """Join the other processes that torchrun started, if it did; leave them at the end."""

    def __init__(self, device: str) -> None:
        self.wanted = device

    def __enter__(self) -> Process:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        if self.wanted.startswith("cuda") and not cuda:
            raise DeviceError(f"device '{self.wanted}' was asked for, but this torch finds no CUDA GPU: use --device cpu")
        name = self.wanted if self.wanted != "auto" else "cuda" if cuda else "cpu"
        device = torch.device(f"cuda:{local}" if name == "cuda" and world_size > 1 else name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.joined = world_size > 1
        if self.joined:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return Process(rank, world_size, device)

    def __exit__(self, *exc: object) -> None:
        if self.joined:
            dist.destroy_process_group()


class _stop_signals(AbstractContextManager[None]):
    """Turn the first SIGINT or SIGTERM into a checkpoint and a clean end; a second one ends at once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def handle(number: int, frame: FrameType | None) -> None:
            self.run.stop = True
            signal.signal(number, self.before[number])

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, handle)
        except ValueError:
            self.before = {}  # not in the main thread: the caller's own handling stays

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


__all__ = ["Process", "Run", "TrainResult", "TrainingError", "build_network", "fingerprint", "train"]
