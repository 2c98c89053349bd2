"""What one optimizer step does: with losses on the output alone, or against a discriminator.

A step has two halves. ``gradients`` runs forward and backward over the batches of the step; ``update`` moves the weights, and is
not called when a gradient is not finite.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drct.engine import resolve_precision
from drct.training.adversarial import GANLoss
from drct.training.losses import LOSSES, CharbonnierLoss, GridLoss
from drct.training.optimizers import create_optimizer
from drct.training.options import Optimizer, PixelLoss, Train, TrainOptions
from drct.training.pairs import Batch
from drct.training.perceptual import PerceptualLoss, load_features
from drct.training.starting import build_discriminator
from drct.training.teacher import Teacher

Convolutional = TypeVar("Convolutional", bound=nn.Module)

# the argument that decides whether every forward pass sends the buffers to the other processes; renamed in torch 2.13
SEND_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class Learner:
    """A network that learns: the network, the wrapper it is called through, and its optimizer.

    Args:
        network: on its device.
        options: of the optimizer.
        world_size: processes that train together; more than one share their gradients.
        grad_clip: largest norm of the gradient, None for any.
        compiled: call it through ``torch.compile``.
    """

    def __init__(
        self, network: nn.Module, options: Optimizer, *, world_size: int = 1, grad_clip: float | None = None, compiled: bool = False
    ) -> None:
        self.network = network
        model: nn.Module = torch.compile(network) if compiled else network  # type: ignore[assignment]
        self.shared = world_size > 1
        if self.shared:
            device = next(network.parameters()).device
            # buffers outside of the state dict are constants; spectral norms keep theirs in it, and these must stay alike
            changing = not network.state_dict().keys().isdisjoint(name for name, _ in network.named_buffers())
            sending: dict[str, Any] = {} if changing else {SEND_BUFFERS: False}
            model = DistributedDataParallel(model, [device] if device.type == "cuda" else None, **sending)
        self.model = model
        self.optimizer = create_optimizer(network, options)
        self.base_rate = options.lr
        self.grad_clip = grad_clip

    def sharing(self, now: bool) -> AbstractContextManager[Any]:
        """Inside, a backward pass shares its gradients with the other processes if ``now``, else it adds them up for later."""
        return nullcontext() if now or not self.shared else self.model.no_sync()  # type: ignore[operator]

    def clip(self) -> bool:
        """Clip the gradient; whether all of it is finite. Every process sees the same shared gradient, so all answer alike."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.grad_clip or math.inf)
        return bool(torch.isfinite(norm))

    def update(self, factor: float) -> None:
        """Move the weights at ``factor`` times the base learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.base_rate
        self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def build_loss(options: PixelLoss) -> nn.Module:
    """The loss of an entry such as ``train.pixel_opt``."""
    kind = LOSSES[options.type]
    if issubclass(kind, CharbonnierLoss) and options.eps is not None:
        return kind(options.loss_weight, options.eps)
    return kind(options.loss_weight)


class ContentLoss:
    """What the output is compared with the ground truth by: pixels, frequencies, features of a classifier."""

    def __init__(self, options: TrainOptions, device: torch.device) -> None:
        t = options.train
        named = {"pix": t.pixel_opt, "freq": t.frequency_opt}
        self.criteria: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            name: build_loss(loss) for name, loss in named.items() if loss is not None
        }
        if t.grid_opt is not None:
            self.criteria["grid"] = GridLoss(t.grid_opt.loss_weight, options.scale)
        self.teacher = None if t.teacher_opt is None else Teacher(t, options.scale, device)
        self.perceptual: PerceptualLoss | None = None
        if (p := t.perceptual_opt) is not None:
            perceptual = PerceptualLoss(
                load_features(p.vgg_type, p.layers, p.path),
                p.layers,
                p.vgg_type,
                perceptual_weight=p.perceptual_weight,
                style_weight=p.style_weight,
                criterion=p.criterion,
                use_input_norm=p.use_input_norm,
                range_norm=p.range_norm,
                shift=p.shift,
            )
            self.perceptual = _placed(perceptual, device)
        gan = t.gan_opt is not None
        self.sharp_pixels = options.l1_gt_usm or not gan  # stage one: whatever the batch calls sharp
        self.sharp_features = options.percep_gt_usm or not gan

    def __call__(self, sr: Tensor, batch: Batch, autocast: AbstractContextManager[Any]) -> dict[str, Tensor]:
        gt = batch.sharp if self.sharp_pixels else batch.gt
        if self.teacher is not None:
            gt = self.teacher.target(batch.lq, gt)
        losses = {name: criterion(sr, gt) for name, criterion in self.criteria.items()}
        if self.perceptual is not None:
            with autocast:
                losses |= self.perceptual(sr, batch.sharp if self.sharp_features else batch.gt)
        return losses


def _placed(network: Convolutional, device: torch.device) -> Convolutional:
    """A network of convolutions on its device, in the order of memory that is fastest for them on CPUs and GPUs."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def uses_bf16(options: Train, device: torch.device) -> bool:
    """Whether the network runs under autocast to bfloat16 on this device."""
    return resolve_precision(options.precision, device) == "bf16"


def _autocast(options: Train, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    return functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=uses_bf16(options, device))


@dataclasses.dataclass
class Terms:
    """Means of what is logged, over the batches of a step."""

    count: int
    sums: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach() / self.count
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def numbers(self) -> dict[str, float]:
        """The means; waits for the device once."""
        values = torch.stack([value.float() for value in self.sums.values()]).tolist() if self.sums else []
        return dict(zip(self.sums, values, strict=True))


class Step(Protocol):
    """One optimizer step in two halves."""

    learners: dict[str, Learner]

    def train(self) -> None:
        """Set the networks to training mode."""
        ...

    def gradients(self, batches: Iterator[Batch], iteration: int) -> Terms:
        """Forward and backward; returns what to log, ``loss`` being what the network minimizes. Nothing of it was waited for."""
        ...

    def clip(self) -> bool:
        """Clip the gradients to ``grad_clip``; whether all of them are finite."""
        ...

    def update(self, factor: float) -> bool:
        """Move the weights; whether the network's (and not the discriminator's alone) moved."""
        ...

    def forget(self) -> None:
        """Drop the gradients."""
        ...


class PixelStep:
    """The network learns from what its output is compared with."""

    def __init__(self, generator: Learner, content: ContentLoss, options: Train, device: torch.device) -> None:
        self.generator = generator
        self.content = content
        self.options = options
        self.autocast = _autocast(options, device)
        self.learners = {"g": generator}

    def train(self) -> None:
        self.generator.model.train()

    def gradients(self, batches: Iterator[Batch], iteration: int) -> Terms:
        count = self.options.accumulate
        terms = Terms(count)
        for number, batch in enumerate(batches, 1):
            with self.generator.sharing(number == count):
                with self.autocast():
                    sr = self.generator.model(batch.lq)
                losses = self.content(sr.float(), batch, self.autocast())
                loss = torch.stack([*losses.values()]).sum() / count
                loss.backward()
            terms.add("loss", loss * count)
            if len(losses) > 1:
                for name, value in losses.items():
                    terms.add(f"l_g_{name}", value)
        return terms

    def clip(self) -> bool:
        return self.generator.clip()

    def update(self, factor: float) -> bool:
        self.generator.update(factor)
        return True

    def forget(self) -> None:
        self.generator.forget()


class GanStep:
    """The network learns to deceive a discriminator too, and the discriminator to tell its output from ground truth.

    Both gradients are taken before either network moves; the discriminator judges the output of before in any case, so nothing
    else changes, and a bad gradient of one stops both.
    """

    def __init__(
        self,
        generator: Learner,
        discriminator: Learner,
        content: ContentLoss,
        gan: GANLoss,
        options: Train,
        device: torch.device,
        sharp_reals: bool,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.content, self.gan = content, gan
        self.options = options
        self.autocast = _autocast(options, device)
        self.sharp_reals = sharp_reals
        self.learners = {"g": generator, "d": discriminator}
        self.deceives = True

    def train(self) -> None:
        self.generator.model.train()
        self.discriminator.model.train()

    def gradients(self, batches: Iterator[Batch], iteration: int) -> Terms:
        count, o = self.options.accumulate, self.options
        self.deceives = iteration >= o.net_d_init_iters and (iteration + 1) % o.net_d_iters == 0
        terms = Terms(count)
        for number, batch in enumerate(batches, 1):
            real = batch.sharp if self.sharp_reals else batch.gt
            fake = self._deceive(batch, real, number == count, terms) if self.deceives else self._output(batch)
            self._discriminate(real, fake, number == count, terms)
        return terms

    def _deceive(self, batch: Batch, real: Tensor, last: bool, terms: Terms) -> Tensor:
        """The gradient of the network; returns its output."""
        judge = self.discriminator.network.requires_grad_(False)
        with self.generator.sharing(last):
            with self.autocast():
                sr = self.generator.model(batch.lq)
                on_fake = judge(sr)
                on_real = judge(real).float() if self.gan.is_relativistic else None
            losses = self.content(sr.float(), batch, self.autocast())
            losses["gan"] = self.gan.generator(on_fake.float(), on_real)
            loss = torch.stack([*losses.values()]).sum() / terms.count
            loss.backward()
        judge.requires_grad_(True)
        terms.add("loss", loss * terms.count)
        for name, value in losses.items():
            terms.add(f"l_g_{name}", value)
        return sr.detach()

    @torch.no_grad()
    def _output(self, batch: Batch) -> Tensor:
        with self.autocast():
            sr: Tensor = self.generator.network(batch.lq)
        return sr

    def _discriminate(self, real: Tensor, fake: Tensor, last: bool, terms: Terms) -> None:
        """The gradient of the discriminator. There is no batch norm in it, so real and fake may share a batch."""
        with self.discriminator.sharing(last):
            with self.autocast():
                judged = self.discriminator.model(torch.cat([real, fake.to(real.dtype)]))
            on_real, on_fake = judged.float().chunk(2)
            loss_real, loss_fake = self.gan.discriminator(on_real, on_fake)
            ((loss_real + loss_fake) / terms.count).backward()
        for name, value in (("l_d_real", loss_real), ("l_d_fake", loss_fake), ("out_d_real", on_real), ("out_d_fake", on_fake)):
            terms.add(name, value.mean())

    def clip(self) -> bool:
        finite = self.discriminator.clip()
        return (self.generator.clip() if self.deceives else True) and finite

    def update(self, factor: float) -> bool:
        if self.deceives:
            self.generator.update(factor)
        self.discriminator.update(factor)
        return self.deceives

    def forget(self) -> None:
        self.generator.forget()
        self.discriminator.forget()


def build_step(
    options: TrainOptions,
    network: nn.Module,
    device: torch.device,
    world_size: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> Step:
    """The step that an option file asks for.

    Raises:
        CheckpointError, DownloadError: the weights of the perceptual loss or of the discriminator's start cannot be read.
    """
    t = options.train
    content = ContentLoss(options, device)
    generator = Learner(network, t.optim_g, world_size=world_size, grad_clip=t.grad_clip, compiled=t.compile)
    if options.network_d is None or t.gan_opt is None:
        return PixelStep(generator, content, t, device)
    judge = _placed(build_discriminator(options, say), device)
    discriminator = Learner(judge, t.optim_d, world_size=world_size, grad_clip=t.grad_clip, compiled=t.compile)
    gan = GANLoss(t.gan_opt.gan_type, t.gan_opt.loss_weight, t.gan_opt.real_label_val, t.gan_opt.fake_label_val)
    return GanStep(generator, discriminator, content, gan, t, device, sharp_reals=options.gan_gt_usm)
