"""Other implementations to measure against, where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from drct.engine.devices import resolve_device
from drct.networks import SuperResolutionNetwork
from drct.networks.drct import DRCT
from drct.networks.window_attention import SwinBlock, shift_masks


def spandrel_drct(network: SuperResolutionNetwork, device: str | torch.device) -> Callable[[Tensor], Tensor] | None:
    """The DRCT of the package spandrel with the weights of ``network``.

    None where the package is not installed or cannot build this network (it knows only the published heads and tail).
    """
    if importlib.util.find_spec("spandrel") is None or not isinstance(network, DRCT) or not network.options.follows_published_rule:
        return None
    import spandrel

    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    side = 64 // network.options.window_size
    for name, block in network.named_modules():
        if isinstance(block, SwinBlock):
            state[f"{name}.attn.relative_position_index"] = block.attn.relative_position_index
            if block.shift:  # spandrel reads the training size from the stored mask
                kinds = torch.zeros(side, side, dtype=torch.long)
                kinds[:, -1] += 1
                kinds[-1] += 2
                state[f"{name}.attn_mask"] = shift_masks(block.window, block.shift)[kinds.flatten()]
    model = spandrel.ModelLoader().load_from_state_dict(state).model
    return model.to(resolve_device(device)).eval()
