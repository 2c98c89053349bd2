"""The weights that a run starts from: of the network, and of the discriminator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from drct.errors import CheckpointError, ModelNotFoundError, OptionError
from drct.networks import SuperResolutionNetwork, create_network
from drct.training.discriminator import UNetDiscriminatorSN, settle
from drct.training.linear_start import linear_start, resample_tail
from drct.training.options import TrainOptions
from drct.weights import detect, find_model, load_into, read_weights


def build_network(options: TrainOptions, say: Callable[[str], None]) -> SuperResolutionNetwork:
    """The network of an option file, with its starting weights."""
    chosen = dict(options.network_g)
    kind = str(chosen.pop("type"))
    try:
        network = create_network(kind.lower(), scale=options.scale, **chosen)
    except OptionError as error:
        raise OptionError(f"network_g: {error}") from None
    path = options.path
    if path.pretrain_network_g is not None:
        with named("path.pretrain_network_g", path.pretrain_network_g):
            weights = read_weights(find_model(path.pretrain_network_g), key=path.param_key_g)
        skip = path.skip_upsampler_g or path.resample_upsampler_g
        try:
            with named("path.pretrain_network_g", path.pretrain_network_g):
                scale = int(detect(weights.tensors)[1].get("upscale", options.scale))
        except CheckpointError:
            # not whole, perhaps a body without its upsampler: load_into judges what may be missing
            if path.resample_upsampler_g or not (skip or not path.strict_load_g):
                raise
            scale = options.scale
        if not skip and scale != options.scale:
            skip = True
            say(f"warning: {path.pretrain_network_g} is of another scale: loading all but the upsampler")
        with named("path.pretrain_network_g", path.pretrain_network_g):
            say(str(load_into(network, weights, strict=path.strict_load_g, skip_upsampler=skip)))
        if path.resample_upsampler_g:
            if (
                "upsample.0.weight" not in weights.tensors
                or weights.tensors["upsample.0.weight"].shape[0] != network.in_chans * scale**2
            ):
                raise OptionError(f"path.resample_upsampler_g: {path.pretrain_network_g} has no tail 'pixelshuffledirect'")
            resample_tail(network, weights.tensors["upsample.0.weight"], weights.tensors["upsample.0.bias"], scale)
    elif options.train.linear_start:
        try:
            linear_start(network)
        except OptionError as error:
            raise OptionError(f"train.linear_start: {error}") from None
    return network


def build_discriminator(options: TrainOptions, say: Callable[[str], None]) -> UNetDiscriminatorSN:
    """The discriminator of an option file, with its starting weights."""
    d, path = options.network_d, options.path
    assert d is not None
    network = UNetDiscriminatorSN(d.num_in_ch, d.num_feat, d.skip_connection)
    whole = False
    if path.pretrain_network_d is not None:
        with named("path.pretrain_network_d", path.pretrain_network_d):
            weights = read_weights(path.pretrain_network_d, key=path.param_key_d)
            report = load_into(network, weights, strict=path.strict_load_d)
        say(f"network_d: {report}")
        whole = report.complete
    if not whole:
        settle(network)
    return network


@contextmanager
def named(key: str, weights: str) -> Iterator[None]:
    """Let errors about the weights to start from tell which they are, and by which key the option file names them."""
    try:
        yield
    except (CheckpointError, ModelNotFoundError) as error:
        known = "" if weights in str(error) else f"{weights}: "
        error.args = (f"{key}: {known}{error}",)
        raise
