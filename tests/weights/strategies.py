"""Random small configurations of every family that the checkpoint room knows."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from drct.networks.drct import BLOCKS, DRCTOptions

# the smallest network by the published rules in which every block is shaped differently
TINY: dict[str, Any] = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "gc": 4, "drop_path_rate": 0.0}


def follows(d: int, gc: int, h: int) -> bool:
    """Whether the published head rule gives every block a whole number of channels per head."""
    dims = [d + j * gc for j in range(BLOCKS)]
    return d % h == 0 and all(dim % (h - dim % h) == 0 for dim in dims[1:])


PUBLISHED = [(d, gc, h) for d in range(4, 25) for gc in range(1, 9) for h in range(1, 5) if follows(d, gc, h)]


@st.composite
def drct_options(draw: st.DrawFn) -> dict[str, Any]:
    """Options for ``create_network("drct", **options)``."""
    groups = draw(st.integers(1, 3))
    rule = draw(st.sampled_from(["published", "head_dim", "block_heads"]))
    options: dict[str, Any] = {}
    if rule == "published":
        d, gc, _ = draw(st.sampled_from(PUBLISHED))
        possible = [h for dd, g, h in PUBLISHED if (dd, g) == (d, gc)]
        heads = draw(st.lists(st.sampled_from(possible), min_size=groups, max_size=groups))
    elif rule == "head_dim":
        width = draw(st.integers(1, 6))
        d, gc = width * draw(st.integers(1, 4)), width * draw(st.integers(1, 3))
        heads, options["head_dim"] = [d // width] * groups, width
    else:
        d, gc = draw(st.integers(4, 24)), draw(st.integers(1, 8))
        dims = [d + j * gc for j in range(BLOCKS)]
        blocks = [draw(st.sampled_from([h for h in range(1, 7) if dim % h == 0])) for dim in dims]
        heads, options["block_heads"] = [blocks[0]] * groups, blocks
    ratio = draw(st.one_of(st.sampled_from([1.0, 2.0, 4.0]), st.floats(0.25, 4.0)))
    window = draw(st.integers(1, 5))
    upsampler = draw(st.sampled_from(["pixelshuffle", "pixelshuffledirect"]))
    return options | {
        "upscale": draw(st.sampled_from([1, 2, 3, 4, 8] if upsampler == "pixelshuffle" else [1, 2, 3, 4, 5])),
        "in_chans": draw(st.sampled_from([1, 3, 4])),
        "img_size": window * draw(st.sampled_from([1, 2, 8])),
        "embed_dim": d,
        "depths": draw(st.lists(st.integers(1, 6), min_size=groups, max_size=groups)),
        "num_heads": heads,
        "window_size": window,
        "gc": gc,
        "mlp_ratio": ratio if int(d * ratio) else 1.0,
        "upsampler": upsampler,
        "resi_connection": draw(st.sampled_from(["1conv", "identity"])),
        "img_range": draw(st.sampled_from([1.0, 1.0, 255.0])),
        "qkv_bias": draw(st.booleans()),
        "qk_scale": draw(st.sampled_from([None, None, 0.5])),
        "ape": draw(st.sampled_from([False, False, True])),
        "patch_norm": draw(st.booleans()),
        "drop_path_rate": draw(st.sampled_from([0.0, 0.1])),
    }


def shape_of(options: DRCTOptions) -> tuple[Any, ...]:
    """What of the options shows in names and shapes, written so that two ways to say one thing are equal."""
    groups = len(options.depths)
    return (
        options.upscale,
        options.in_chans,
        options.embed_dim,
        options.gc,
        options.window_size,
        options.upsampler,
        options.resi_connection,
        options.qkv_bias,
        options.patch_norm,
        options.img_size if options.ape else None,
        tuple(options.heads_of_group(g) for g in range(groups)),
        tuple(int(dim * options.mlp_ratio) for dim in options.block_dims()[:3]),
    )
