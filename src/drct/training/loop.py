"""The training loop: batch, losses, step, log, validate, save. Read :func:`train` from top to bottom."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from drct.datasets.loader import RawBatch, batches
from drct.engine.accelerate import accelerate
from drct.engine.devices import bf16_instructions
from drct.errors import CheckpointError, Error, OptionError, OutOfMemoryError, is_out_of_memory
from drct.networks.defaults import usual_defaults
from drct.networks.registry import options_without_effect
from drct.training.checkpoint import State, held, list_states, load_state, newer_states, save_state, set_aside, steps_of
from drct.training.ema import EMA
from drct.training.log import Log, draw_curve, read_log
from drct.training.options import REAL_KEYS, Path_, TrainOptions
from drct.training.pairs import Batch, open_pairs
from drct.training.processes import Process, StopSignals, processes
from drct.training.schedule import Schedule
from drct.training.starting import build_network
from drct.training.steps import build_step, uses_bf16
from drct.training.validation import ValidationSet, check_borders, check_metrics, check_positions, save_sheet, validate
from drct.weights.files import one_line, weights_sha256

BAD_STEPS = 10  # so many non-finite steps in a row end the run
GAN_OPTIONS = ("optim_d", "gan_opt", "net_d_iters", "net_d_init_iters")


class TrainingError(Error):
    """Training cannot go on."""

    code = "training"


@dataclasses.dataclass
class TrainResult:
    """What a run left behind."""

    folder: Path
    iteration: int
    best: dict[str, float]
    interrupted: bool  # by SIGINT or SIGTERM


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
        resume: ``"auto"`` continues from the newest checkpoint in ``folder`` if there is one, a path from that checkpoint, or from
            the newest of that folder. Newer checkpoints in ``folder`` are set aside, see
            :func:`drct.training.checkpoint.set_aside`. Default: ``path.resume_state`` of the option file.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        echo: receives the lines for the console, in the main process only.
        stop_after: leave (with a checkpoint) after so many iterations of this call.
        tensorboard: write event files beside the log.

    Raises:
        OptionError, DataError, CheckpointError, DeviceError: before the first step.
        OutOfMemoryError: the device or the computer has not enough memory.
        TrainingError: ten steps in a row were not finite, and the message names the checkpoint of before; or the disk is full.
        ProcessError: another process of the run has ended; earlier checkpoints are intact.
    """
    folder = Path(folder or Path("runs") / options.name)
    way = processes(device, lambda: _how_to_go_on(folder))
    with way as process, repeatable(process.device), usual_defaults([process.device]):
        say = echo if process.is_main else _silent
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"{folder} is a file, but the output is the folder of the run: give another one")
        start = _find_start(resume or options.path.resume_state, folder, say)
        try:
            run = Run(options, folder, process, say, resumes=start is not None)
            with _writing(folder), held(folder) if process.is_main else nullcontext():
                if process.is_main and _find_start(resume or options.path.resume_state, folder, _silent) != start:
                    raise OptionError(f"another process has trained in {folder} until now: start again")
                if resume or options.path.resume_state:
                    run.resume(start, go_back=resume is not None)
                return run.go(stop_after, tensorboard)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(_how_to_save_memory(options, process.device)) from error


def _find_start(resume: str | None, folder: Path, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from; None for the beginning.

    Raises:
        OptionError: nothing was said, and ``folder`` holds a run.
        CheckpointError: there is none where one was said to be. Only ``auto`` may find nothing: a mistyped path would begin anew.
    """
    if resume is None:
        if list_states(folder):
            raise OptionError(f"{folder} holds checkpoints of an earlier run: add --resume auto, or choose another name")
        _spare_weights(folder)
        return None
    where = folder if resume == "auto" else Path(resume)
    if resume != "auto" and not where.exists():
        raise CheckpointError(f"{where} does not exist: give a checkpoint of a run, or auto for the newest in {folder}")
    if resume != "auto" and not where.is_dir():
        return where
    if states := list_states(where):
        return states[-1]
    if resume != "auto":
        raise CheckpointError(f"{where} holds no checkpoint (iteration_N.state)")
    _spare_weights(folder)
    say(f"no checkpoint in {where}: starting from the beginning")
    return None


def _spare_weights(folder: Path) -> None:
    """Begin no run over the weights of another, whose checkpoints somebody has removed."""
    for name in ("best.safetensors", "latest.safetensors"):
        if (folder / name).exists():
            raise OptionError(f"{folder} holds {name} of an earlier run, but no checkpoint to go on from: choose another name")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Inside, a file that cannot be written ends the run with one line."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        raise TrainingError(f"{place} cannot be written ({error.strerror or error}); {_how_to_go_on(folder)}") from error


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, gradients of convolutions and attention are the same every time; the fastest on GPUs add up in any order.

    Without, a run that is resumed would not give the weights of one that was not interrupted.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


class Run:
    """A run's parts, built once from the options; the loop is :meth:`go`.

    Args:
        options: from the option file.
        folder: where the run lives.
        process: this one among those that train together.
        say: receives the lines for the console.
        resumes: :meth:`resume` will give all weights, so that those to start from are not read and may be gone.
    """

    def __init__(
        self, options: TrainOptions, folder: Path, process: Process, say: Callable[[str], None], *, resumes: bool = False
    ) -> None:
        self.options, self.folder, self.process, self.say = options, folder, process, say
        t = options.train
        torch.manual_seed(options.manual_seed)
        self.pairs = open_pairs(options)
        self.val_sets: list[ValidationSet] = []
        if process.is_main:
            self.val_sets = [ValidationSet(v, options.scale, f"datasets.{key}") for key, v in options.val_sets.items()]
        if self.val_sets:
            check_metrics(options.val.metrics)
            check_borders(options.val.metrics, self.val_sets)
        start = options.model_copy(update={"path": Path_()}) if resumes else options
        self.network = build_network(start, say)
        check_positions(self.network, options.patch_size // options.scale, self.val_sets)
        self.network.to(process.device)
        for line in accelerate(self.network):
            say(line)
        if t.precision == "bf16" and process.device.type == "cpu" and not bf16_instructions():
            say("warning: this processor has no instructions for bf16 and imitates them slowly: 'precision: auto' would take fp32")
        self.ema = EMA(self.network, t.ema_decay) if t.ema_decay > 0 else None
        self.step = build_step(start, self.network, process.device, process.world_size, say)
        self.schedule = Schedule(
            t.scheduler.type,
            t.total_iter,
            max(0, t.warmup_iter),
            tuple(t.scheduler.milestones),
            t.scheduler.gamma,
            t.scheduler.eta_min,
        )
        self.iteration = 0
        self.best: dict[str, float] = {}
        self._ahead: Batch | Exception | None = None  # the first batch of the next step, or why there is none
        self.saved: int | None = None  # iteration of the newest checkpoint that this process wrote

    # ---------------------------------------------------------------------------------------------- the loop

    def go(self, stop_after: int | None = None, tensorboard: bool = False) -> TrainResult:
        """Train until ``total_iter``, ``stop_after`` or a signal.

        While steps are skipped because they are not finite, the weights may be spoilt already, and a checkpoint of them must not
        displace the last one of before: what is due is saved after the next finite step, and a validation is left out. Only at
        ``total_iter`` both are done in any case. A run that is stopped meanwhile saves if it has learned since the last checkpoint.
        """
        o, t = self.options, self.options.train
        end = t.total_iter if stop_after is None else min(t.total_iter, self.iteration + stop_after)
        log = Log(self.folder, self.process.is_main, self.iteration, tensorboard)
        raw_batches = batches(
            self.pairs.patches,
            self.iteration * t.accumulate,
            o.train_set.batch_size_per_gpu,
            rank=self.process.rank,
            world_size=self.process.world_size,
            workers=o.train_set.num_worker_per_gpu,
            pin=self.process.device.type == "cuda",
        )
        progress = Progress(self.iteration, t.total_iter, o.train_set.batch_size_per_gpu * t.accumulate * self.process.world_size)
        bad = 0
        save_is_due = interrupted = False
        self._ahead = None
        self.step.train()
        # a run that ended between a checkpoint and the validation that was to follow
        if self.process.any(self._validation_is_missing()):
            self._validate(log)
        with closing(log), closing(raw_batches) as loader, StopSignals() as signals:
            while self.iteration < end and not (interrupted := self.process.any(signals.raised)):
                # random numbers (stochastic depth) are a function of the iteration, so resuming needs no generator state
                torch.manual_seed((o.manual_seed * 1_000_003 + self.iteration) * 4099 + self.process.rank)
                factor = self.schedule(self.iteration)
                try:
                    terms = self.step.gradients(self._batches(loader), self.iteration)
                except Error:  # a damaged image must not cost what was learned, while the pool is as it was before this step
                    if self.process.world_size == 1 and (self.pairs.keep_nothing or t.accumulate == 1):
                        self.step.forget()
                        self._save_at_end(bad)
                    raise
                if self.pairs.keep_nothing and self.iteration + 1 < end:  # while a GPU is at work
                    try:
                        self._ahead = self._batch(loader, self.iteration + 1, 0)
                    except Exception as error:  # its turn comes after this step is saved
                        self._ahead = error
                # every process sees the same averaged gradients, so all skip together
                if not self.step.clip():
                    self.step.forget()
                    bad += 1
                    progress.skip()
                    log.line({"iteration": self.iteration + 1, "skipped": "gradient is not finite", "in_a_row": bad})
                    if bad == BAD_STEPS:
                        raise self._diverged()
                else:
                    bad = 0
                    progress.add(terms.numbers())  # before the update, which need not be waited for
                    if self.step.update(factor) and self.ema is not None:
                        self.ema.update(self.network)
                self.iteration += 1

                if self.iteration % o.logger.print_freq == 0 or self.iteration == end:
                    record, line = progress.report(self.iteration, factor * t.optim_g.lr)
                    log.line(record)
                    self.say(line)
                save_is_due |= self._validation_is_due() or self.iteration % o.logger.save_checkpoint_freq == 0
                if bad and self.iteration < t.total_iter:
                    continue
                # first what has been learned: an image that cannot be read must not cost it
                if save_is_due:
                    self._save()
                    save_is_due = False
                if self._validation_is_due():
                    with progress.paused():
                        self._validate(log)
            self._save_at_end(bad)
        return TrainResult(self.folder, self.iteration, self.best, interrupted)

    def _batches(self, loader: Iterator[RawBatch]) -> Iterator[Batch]:
        """The batches of one step."""
        for micro in range(self.options.train.accumulate):
            prepared, self._ahead = self._ahead, None
            if isinstance(prepared, Exception):
                raise prepared
            yield prepared or self._batch(loader, self.iteration, micro)

    def _batch(self, loader: Iterator[RawBatch], iteration: int, micro: int) -> Batch:
        return self.pairs(next(loader), self.process.device, (self.options.manual_seed, iteration, micro, self.process.rank))

    # ---------------------------------------------------------------------------------------------- saving

    def _validation_is_due(self) -> bool:
        now = self.iteration % self.options.val.val_freq == 0 or self.iteration == self.options.train.total_iter
        return now and bool(self.options.val_sets)

    def _validation_is_missing(self) -> bool:
        """Whether the log has no scores of the iteration that the run goes on from, though it should."""
        if not self.process.is_main or self.iteration == 0 or not self._validation_is_due():
            return False
        has_scores = bool(self.options.val.metrics) and any(v.gt is not None for v in self.val_sets)
        return has_scores and not any(r.get("iteration") == self.iteration and "validation" in r for r in read_log(self.folder))

    def _validate(self, log: Log) -> None:
        """Scores, a sheet and a curve; once more a checkpoint where the scores are the best so far, since it holds that record."""
        before = self.best
        scores: dict[str, dict[str, float]] = {}
        if self.process.is_main and self.val_sets:
            self.network.eval()
            if self.ema is not None:
                self.ema.swap(self.network)
            bf16 = uses_bf16(self.options.train, self.process.device)
            found = {v.name: validate(self.network, v, self.options.val.metrics, self.process.device, bf16) for v in self.val_sets}
            scores = {name: values for name, values in found.items() if values}
            if scores:
                self._keep_best(next(iter(scores.values())))
            for name, values in scores.items():
                self.say(f"  {name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items()))
            sheet = self.folder / "sheets" / f"{self.iteration:08d}.png"
            sheet.parent.mkdir(exist_ok=True)
            save_sheet(self.network, self.val_sets[0], sheet, self.process.device, self.iteration)
            if self.ema is not None:
                self.ema.swap(self.network)
            self.network.train()
        if self.process.any(self.best != before):  # the others wait here
            self._save()
        # last: a run that is killed before this line makes the validation again
        if scores:
            log.line({"iteration": self.iteration, "validation": scores})
        if self.process.is_main and self.val_sets:
            draw_curve(self.folder)

    def _keep_best(self, scores: dict[str, float]) -> None:
        """The first metric on the first set that has scores says which weights are best."""
        metric, rule = next(iter(self.options.val.metrics.items()))
        sign = 1 if rule.better == "higher" else -1
        if sign * scores[metric] > sign * self.best.get(metric, -sign * math.inf):
            self.best = {metric: scores[metric], "iteration": float(self.iteration)}
            self._save_weights("best")

    def _save_at_end(self, bad: int) -> None:
        """Save what was learned since the newest checkpoint; ``bad`` skipped steps at the end are not worth one by themselves."""
        if self.saved == self.iteration:
            return
        if bad and self.iteration < self.options.train.total_iter:
            learned = self.iteration - bad
            if self.process.any(self.process.is_main and bool(newer_states(self.folder, learned - 1))):
                return
        self._save()

    def _diverged(self) -> TrainingError:
        """The error of a run whose last steps were not finite. Where there is no checkpoint yet, one is made if it can be used."""
        first = self.iteration + 2 - BAD_STEPS
        bad = f"{BAD_STEPS} steps in a row were not finite, the first at iteration {first}"
        mend = "lower the learning rate or set train.grad_clip"
        states = self.process.share(list_states(self.folder))[0]
        if states:
            before = f", or if that diverges too, with --resume {states[-2]}" if len(states) > 1 else ""
            return TrainingError(
                f"{bad}; the newest checkpoint of before is {states[-1]}, of iteration {steps_of(states[-1])}: {mend} and go on "
                f"with --resume auto{before}"
            )
        weights = [value for learner in self.step.learners.values() for value in learner.network.state_dict().values()]
        if not all(bool(torch.isfinite(value).all()) for value in weights):
            return TrainingError(f"{bad}; no checkpoint had been written yet: {mend} and start again")
        self._save()
        return TrainingError(
            f"{bad}; no checkpoint had been written before, and the one now in {self.folder} holds the weights after iteration "
            f"{first - 1}, which may be spoilt already: {mend} and go on with --resume auto, or start again under another name"
        )

    def _save(self) -> None:
        pairs = self.process.gather(self.pairs.state())
        if self.process.is_main:
            generator, discriminator = self.step.learners["g"], self.step.learners.get("d")
            state = State(
                iteration=self.iteration,
                network=self.network.state_dict(),
                ema={} if self.ema is None else self.ema.shadow,
                ema_updates=0 if self.ema is None else self.ema.updates,
                optimizer=generator.optimizer.state_dict(),
                best=self.best,
                options_sha256=fingerprint(self.options),
                discriminator={} if discriminator is None else discriminator.state(),
                pairs=pairs,
                images=len(self.pairs.patches.gt),
                judged=judged_by(self.options),
                rates=changeable_rates(self.options),
            )
            save_state(state, self.folder)
            if self.ema is not None:
                self.ema.swap(self.network)
            self._save_weights("latest")
            if self.ema is not None:
                self.ema.swap(self.network)
        self.saved = self.iteration

    def _save_weights(self, name: str) -> None:
        """Write the network as it stands, that is with the averaged weights swapped in, as ``NAME.safetensors``.

        The note in it is read again by :func:`_iteration_of`.
        """
        from drct.weights import save_network

        note = f"{self.options.name}, iteration {self.iteration}"
        try:
            save_network(self.network, self.folder / f"{name}.safetensors", training=note)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {_how_to_go_on(self.folder)}") from error

    def resume(self, where: Path | None, *, go_back: bool = True) -> None:
        """Take over a checkpoint, if there is one. All processes must call it, also those that found none.

        Args:
            where: the checkpoint.
            go_back: set newer checkpoints of the run aside; without, they are an error.
        """
        if where is not None:
            self._read_state(where)
        self._agree()
        if where is None or not self.process.is_main:
            return
        newer = newer_states(self.folder, self.iteration)
        if newer and not go_back:
            raise OptionError(
                f"{newer[-1]} is newer than {where} of path.resume_state: add --resume auto to go on from it, or --resume {where}"
            )
        best = self.folder / "best.safetensors"
        if newer and best.is_file() and _iteration_of(best) > self.iteration:
            newer.append(best)
        with _writing(self.folder):
            set_aside(newer)
        if newer:
            self.say(f"set aside: {', '.join(path.name for path in newer)} (now .abandoned)")
        # a record counts while its weights are here, or the best from now on would not be kept
        if self.best and not (best.is_file() and _iteration_of(best) in (0, self.best["iteration"])):
            self.best = {}

    def _agree(self) -> None:
        """Make sure that all processes go on from the same weights: each looked for the checkpoint by itself, on its own disk.

        Raises:
            CheckpointError: they do not; in all processes.
        """
        if self.process.world_size == 1:
            return
        found = self.process.share((self.iteration, weights_sha256(self.network.state_dict())))
        for rank, (iteration, weights) in enumerate(found):
            if (iteration, weights) != found[0]:
                weights = " with other weights" if iteration == found[0][0] else ""
                raise CheckpointError(
                    f"the process of rank 0 goes on from iteration {found[0][0]}, but that of rank {rank} from iteration "
                    f"{iteration}{weights}: all must see the same checkpoint"
                )

    def _read_state(self, where: Path) -> None:
        state = load_state(where)
        known = [fingerprint(self.options, earlier) for earlier in range(6)]
        if state.options_sha256 not in known:
            raise CheckpointError(
                f"{where} was made with other options (scale, manual_seed, network_g, datasets.train, train or those of a GAN): "
                "resume with the same option file"
            )
        try:
            self._take_over(state, where)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise CheckpointError(f"{where} is damaged ({one_line(error)}): resume from an earlier checkpoint") from error
        self.iteration, self.best = state.iteration, state.best
        if self.best and state.judged not in ("", judged_by(self.options)):
            self.best = {}
            self.say("warning: validation measures something else than before: from now on the best weights are chosen anew")
        if _drawn(self.options, known.index(state.options_sha256)) != _drawn(self.options):
            self.say(f"warning: {where} was made by an earlier version, which drew patches otherwise: other patches follow")
        images = len(self.pairs.patches.gt)
        if state.images not in (0, images):  # welcome where a set has grown, but no longer the run that it would have been
            self.say(f"warning: {where} was trained on {state.images} images, and there are {images} now: other patches follow")
        for key, rate in changeable_rates(self.options).items():
            if key in state.rates and state.rates[key] != rate:
                self.say(f"{key} was {_rate(state.rates[key])} until now and is {_rate(rate)} from here on")
        self.say(f"resumed {where.name} at iteration {state.iteration}")

    def _take_over(self, state: State, where: Path) -> None:
        own = self.network.state_dict()
        if other := next((name for name, t in state.network.items() if name in own and t.shape != own[name].shape), None):
            raise CheckpointError(
                f"{where} holds another network than network_g describes ({other}): earlier versions ignored num_heads beside the "
                "head_dim of drct_light; give head_dim: 16 to go on"
            )
        self.step.learners["g"].load_state({"network": state.network, "optimizer": state.optimizer})
        if "d" in self.step.learners:
            self.step.learners["d"].load_state(state.discriminator)
        if len(state.pairs) == self.process.world_size:
            self.pairs.load_state(state.pairs[self.process.rank])
        elif state.pairs:
            pools = " and pools of pairs begin empty" if any(state.pairs) else ""
            self.say(
                f"warning: {where} was made by {len(state.pairs)} processes, not {self.process.world_size}: "
                f"the batch is another one, other patches follow{pools}"
            )
        if self.ema is not None:
            for name, value in state.ema.items():
                self.ema.shadow[name].copy_(value)
            self.ema.updates = state.ema_updates


def _iteration_of(weights: Path) -> int:
    """When a run wrote weights; 0 if they do not tell."""
    from drct.weights import read_weights

    try:
        note = re.search(r", iteration (\d+)$", read_weights(weights).metadata.get("training", ""))
    except CheckpointError:
        return 0
    return int(note[1]) if note else 0


class Progress:
    """Means of what the steps report, and how fast they are."""

    def __init__(self, iteration: int, total: int, images: int) -> None:
        self.total, self.images = total, images
        self._restart(iteration)

    def _restart(self, iteration: int) -> None:
        self.since, self.started = iteration, time.perf_counter()
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.skipped = 0

    def add(self, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            self.sums[name] += value
            self.counts[name] += 1

    def skip(self) -> None:
        """A step that moved no weights."""
        self.skipped += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def report(self, iteration: int, rate: float) -> tuple[dict[str, Any], str]:
        """Record for the log and line for the console since the last report."""
        seconds, steps = time.perf_counter() - self.started, iteration - self.since
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        record = {"iteration": iteration, "loss": means.pop("loss", None), "lr": rate}
        record |= {"images_per_second": self.images * steps / seconds, **means}
        left = _duration((self.total - iteration) * seconds / steps)
        if record["loss"] is None:
            del record["loss"]  # the discriminator learned alone
        loss = f"loss {record['loss']:.5f}" if "loss" in record else "loss -"
        judged = "".join(f"  {name} {means[name]:+.2f}" for name in ("out_d_real", "out_d_fake") if name in means)
        line = f"{iteration:>8}/{self.total}  {loss}{judged}  lr {rate:.2e}  {steps / seconds:.2f} it/s  {left} left"
        if self.skipped:
            line += f"  {self.skipped} of {steps} steps skipped"
        self._restart(iteration)
        return record, line


def fingerprint(options: TrainOptions, earlier: int = 0) -> str:
    """Hash of the options that a resumed run must share with the one it continues.

    Left out is where files lie, what has no effect on the network's weights, and what may be changed on the way: length and
    schedule, learning rates and ``grad_clip``, precision and compilation. In checkpoints of ``earlier`` generations more counted:
    in those from 2 on the rates and ``grad_clip``, in those of 4 also what has no effect at all, in those of 5 besides where files
    lie. Those of 1 and 3 count the same as those before them, but tell patches that were drawn otherwise.
    """
    fixed: dict[str, Any] = options.model_dump(mode="json", include={"scale", "manual_seed", "network_g", "datasets", "train"})
    fixed["datasets"] = fixed["datasets"]["train"]
    fixed["datasets"].pop("num_worker_per_gpu")
    for free in ("total_iter", "scheduler", "compile", "precision"):
        fixed["train"].pop(free)
    # tones, faults, leaves, clean pairs and the options of the GAN and of the real world came later: they count where they play a
    # part, and older checkpoints stay valid
    for name in ("tone_share", "fault_share", "leaves_share", "clean_share"):
        if not fixed["datasets"][name]:
            fixed["datasets"].pop(name)
    if options.network_d is None:
        for name in GAN_OPTIONS:
            fixed["train"].pop(name)
    for name in ("perceptual_opt", "grid_opt", "teacher_opt"):
        if fixed["train"][name] is None:
            fixed["train"].pop(name)
    for name in ("pixel_opt", "frequency_opt"):
        if fixed["train"][name] is not None and fixed["train"][name]["eps"] is None:
            fixed["train"][name].pop("eps")
    if options.degradation is None:
        fixed["datasets"].pop("crop_size")
    real = {"degradation", *REAL_KEYS}
    late = (real if options.degradation is not None else set()) | ({"network_d"} if options.network_d is not None else set())
    fixed |= options.model_dump(mode="json", include=late)
    if earlier < 5:
        for name in ("dataroot_gt", "dataroot_lq", "meta_info_file"):
            fixed["datasets"][name] = fixed["datasets"][name] is not None
        if fixed["train"].get("perceptual_opt"):
            fixed["train"]["perceptual_opt"].pop("path")
        if fixed["train"].get("teacher_opt"):
            fixed["train"]["teacher_opt"]["network"] = Path(fixed["train"]["teacher_opt"]["network"]).name
        fixed["network_g"].pop("use_checkpoint", None)
    if earlier < 4:
        for name in ("name", "dataset_enlarge_ratio"):
            fixed["datasets"].pop(name)
        for name in options_without_effect(options.network_g):
            fixed["network_g"].pop(name)
    fixed["datasets"] |= _drawn(options, earlier)
    if earlier < 2:
        fixed["train"].pop("grad_clip")
        for name in {"optim_g", "optim_d"} & fixed["train"].keys():
            fixed["train"][name].pop("lr")
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def changeable_rates(options: TrainOptions) -> dict[str, float | None]:
    """What a run that diverged may change to go on, by key: it takes effect with the next step, and a resumed run tells of it."""
    t = options.train
    rates = {"train.optim_g.lr": t.optim_g.lr, "train.grad_clip": t.grad_clip}
    return rates if options.network_d is None else rates | {"train.optim_d.lr": t.optim_d.lr}


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _drawn(options: TrainOptions, earlier: int = 0) -> dict[str, str]:
    """How patches are drawn otherwise than by the first versions, as the :func:`fingerprint` counts it.

    Those drew by area in whole multiples of the smallest image, turned by a quarter where ``use_rot`` asks for flips upside down
    and transpositions, and moved no tones towards the most saturated colours.
    """
    data = options.train_set
    ways = {}
    if earlier < 3 and (data.by_area or (data.use_rot and not data.use_hflip)):
        ways["drawn"] = "anew"
    if earlier < 1 and data.tone_share:
        ways["tones"] = "saturated"
    return ways


def judged_by(options: TrainOptions) -> str:
    """Hash of what the best weights are chosen by: the first metric, and the first validation set but for where it lies."""
    if not options.val_sets or not options.val.metrics:
        return ""
    first = next(iter(options.val_sets.values())).model_dump(mode="json", exclude={"dataroot_gt", "name"})
    first["dataroot_lq"] = first["dataroot_lq"] is not None
    name, metric = next(iter(options.val.metrics.items()))
    judged = [first, name, metric.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(judged, sort_keys=True).encode()).hexdigest()


def _how_to_go_on(folder: Path) -> str:
    states = list_states(folder)
    if not states:
        return "no checkpoint had been written yet: start again"
    return f"{states[-1]} and what was written before it are intact: go on by the same command with --resume auto"


def _how_to_save_memory(options: TrainOptions, device: torch.device) -> str:
    batch = options.train_set.batch_size_per_gpu
    where = "the computer" if device.type == "cpu" else str(device)
    return (
        f"{where} has not enough memory for this training: reduce datasets.train.batch_size_per_gpu (now {batch}; train.accumulate "
        "makes up for it), or set network_g.use_checkpoint to true or train.precision to bf16 (both also on --resume)"
    )


def _silent(line: str) -> None:
    """Takes the console lines of all processes but the first."""


def _duration(seconds: float) -> str:
    minutes = int(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m"


__all__ = ["Process", "Run", "TrainResult", "TrainingError", "fingerprint", "train"]
