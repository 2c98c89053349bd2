"""A teacher: a trained network whose results stand, in part, for the ground truth (distillation, arXiv 1503.02531).

Most of what a network's result differs from the ground truth by cannot be known from the small image. In gradients that part is
noise, and a teacher's result has none of it: what is left to learn is what the teacher does better. A network can be its own
teacher when that looks at the image under other flips and rotations than the learner: the mean of a network over all of them is
better than the network, so learning that mean is learning something.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drct.engine import compile, resolve_precision
from drct.engine.views import VIEWS, mean_of_views
from drct.errors import OptionError
from drct.training.options import Train


class Teacher:
    """Mixes what a trained network makes of an image into the ground truth.

    Args:
        options: ``teacher_opt`` must be there.
        scale: of the training.
        device: where it is done.

    Raises:
        OptionError: the teacher enlarges by another factor, or is none for RGB.
        CheckpointError, ModelNotFoundError: it cannot be loaded.
    """

    def __init__(self, options: Train, scale: int, device: torch.device) -> None:
        from drct.weights import load_network

        assert options.teacher_opt is not None
        teacher = load_network(options.teacher_opt.network)
        for found, wanted, what in ((teacher.scale, scale, "scale"), (teacher.in_chans, 3, "number of image channels")):
            if found != wanted:
                raise OptionError(
                    f"train.teacher_opt.network: the {what} of {options.teacher_opt.network} is {found}, but {wanted} is needed"
                )
        self.weight, self.views = options.teacher_opt.weight, options.teacher_opt.views
        self.program = compile(teacher, device, resolve_precision(options.precision, device))

    def target(self, lq: Tensor, gt: Tensor) -> Tensor:
        """What the learner's output is to be compared with.

        Args:
            lq: ``(N, 3, H, W)`` in 0..1.
            gt: ``(N, 3, scale * H, scale * W)`` in 0..1.

        Returns:
            ``(1 - weight) * gt + weight * teacher``, the teacher's mean over ``views`` of the eight views, drawn from torch's
            generator, one draw for the batch.
        """
        views = torch.randperm(VIEWS)[: self.views].tolist()
        return torch.lerp(gt, mean_of_views(self.program, lq, views), self.weight)
