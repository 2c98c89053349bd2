"""Adversarial losses on the logits of a discriminator; every pixel of ``(N, 1, H, W)`` counts as one judgement."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GANLoss(nn.Module):
    """What the discriminator and the generator are told.

    ========== ============================================================= ==================================================
    gan_type   discriminator                                                 generator
    ========== ============================================================= ==================================================
    vanilla    cross entropy of real and fake against their labels           cross entropy of fake against the real label
    lsgan      squared distance to the labels (Mao et al., 2017)             squared distance of fake to the real label
    hinge      1 - real and 1 + fake, where positive (Lim & Ye, 2017)        minus fake
    relativistic  cross entropy of real minus mean fake, and of fake minus   the same with the labels exchanged
               mean real (Jolicoeur-Martineau, 2018)
    ========== ============================================================= ==================================================

    Args:
        gan_type: one of the above.
        loss_weight: factor of the generator's loss; the discriminator's is never weighted.
        real_label_val: what the discriminator should say of ground truth.
        fake_label_val: what it should say of generated images.
    """

    def __init__(
        self, gan_type: str = "vanilla", loss_weight: float = 1.0, real_label_val: float = 1.0, fake_label_val: float = 0.0
    ) -> None:
        super().__init__()
        if gan_type not in GAN_TYPES:
            raise ValueError(f"no GAN loss '{gan_type}'")
        self.gan_type = gan_type
        self.loss_weight = loss_weight
        self.real_label = real_label_val
        self.fake_label = fake_label_val

    @property
    def is_relativistic(self) -> bool:
        """Whether the generator's loss looks at the judgement of real images too."""
        return self.gan_type == "relativistic"

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """The generator's loss, weighted. ``real`` is needed by the relativistic one only."""
        if self.gan_type == "hinge":
            loss = -fake.mean()
        elif self.is_relativistic:
            assert real is not None
            loss = (self._distance(real - fake.mean(), self.fake_label) + self._distance(fake - real.mean(), self.real_label)) / 2
        else:
            loss = self._distance(fake, self.real_label)
        return self.loss_weight * loss

    def discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's losses on real and on fake images; their sum is what it minimizes."""
        if self.gan_type == "hinge":
            return F.relu(1 - real).mean(), F.relu(1 + fake).mean()
        if self.is_relativistic:
            on_real = self._distance(real - fake.mean(), self.real_label)
            on_fake = self._distance(fake - real.mean(), self.fake_label)
            return on_real / 2, on_fake / 2
        return self._distance(real, self.real_label), self._distance(fake, self.fake_label)

    def _distance(self, logits: Tensor, label: float) -> Tensor:
        target = torch.full_like(logits, label)
        if self.gan_type == "lsgan":
            return F.mse_loss(logits, target)
        return F.binary_cross_entropy_with_logits(logits, target)


GAN_TYPES = ("vanilla", "lsgan", "hinge", "relativistic")
