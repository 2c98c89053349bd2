"""Everything about one image and some networks on one page: a single HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drct.explain import figures
from drct.explain.cka import samples, similarity
from drct.explain.cost import NetworkCost, network_cost
from drct.explain.extras import need
from drct.explain.features import as_picture, group_features, groups_of
from drct.explain.field import receptive_field
from drct.explain.flow import feature_flow
from drct.explain.lam import Window, attribute_all, crop_to_multiple, low_resolution
from drct.explain.subjects import Subject, centre
from drct.imaging import replacing_text
from drct.places import written

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
img { display: block; margin: 1rem auto; height: auto; max-width: 100%; min-width: min(40rem, var(--width)) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
thead th { white-space: normal; overflow-wrap: anywhere; vertical-align: bottom }
tbody th { text-align: left; font-weight: normal; padding-left: 0 }
h2 { margin-top: 2.5rem }
"""

TEXTS = {
    "lam": (
        "What the networks look at",
        "The red box is a small window of the enlarged picture. The map shows which pixels of the small picture the network "
        "used to draw the detail inside that window (local attribution map, LAM): the darker, the more. HR is the picture as it "
        "was before it was made small, SR what the network made of the small one, and the density is the map smoothed. DI, the "
        "diffusion index, says in one number from 0 to 100 how far the map spreads; a larger one means that more of the picture "
        "took part.",
    ),
    "flow": (
        "How strong the features are on their way",
        "A network passes its image through groups of layers, one after the other. The curves show how strong the numbers "
        "between the groups are: the largest, their mean size, and how much they differ. A curve that falls towards the last group "
        "means that information is lost on the way, the information bottleneck that DRCT's dense connections are meant to avoid.",
    ),
    "features": (
        "What the features look like",
        "The same numbers as pictures, the mean of their size over all channels: one row for each network, from its first group to "
        "its last. A row has one colour scale, so that features that fade with depth also look faded.",
    ),
    "field": (
        "How far the networks look",
        "How much each pixel of the small picture changes the middle of the large one (effective receptive field). The scale is "
        "logarithmic: each number on the bar is ten times the one below. Above each map stands the square that holds 90 % of it.",
    ),
    "cka": (
        "How much the groups differ",
        "Similarity between what leaves each group and what leaves each other one (linear CKA): 1 means that they carry the same, "
        "0 that they have nothing in common. Groups that resemble their neighbours change little.",
    ),
    "cost": (
        "What the networks cost",
        "Parameters are the numbers learned in training. Multiply-adds are the operations for one small picture of 64 x 64 "
        "pixels, in billions (G), and below it how many of them are convolutions, linear layers and so on: fewer means faster. "
        "Memory is that of what is computed on the way, in 32-bit numbers, without the parameters: while enlarging, and while "
        "training, which has to keep more.",
    ),
}


def write_report(
    file: Path,
    title: str,
    hr: np.ndarray,
    subjects: Sequence[Subject],
    window: Window | int = 16,
    *,
    fold: int = 50,
    crop: int = 256,
    advance: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Explain networks on one image in one HTML file.

    Args:
        file: to write.
        title: name of the image.
        hr: HR image ``(H, W, 3)`` uint8; its middle is used.
        subjects: networks in eval mode.
        window: of the attribution map, in pixels of the middle that is used; a number is the side of one around its centre.
        fold: steps of the attribution's path.
        crop: most pixels a side that are used of ``hr``.
        advance: called with the name of a step, steps done and steps in all.

    Returns:
        Diffusion index by name of network.

    Raises:
        OptionError: the window does not fit, a network has no named groups, or the file cannot be written.
        MissingDependencyError: a package of the extra ``explain`` is not installed.
    """
    for subject in subjects:
        groups_of(subject)
    whole, hr = hr.shape, crop_to_multiple(centre(hr, crop), subjects)
    height, width = hr.shape[:2]
    if not isinstance(window, Window):
        window = Window.in_the_middle(height, width, operator.index(window))
    window.check(height, width)
    names = [subject.name for subject in subjects]
    inputs = [low_resolution(hr, subject.network.scale) for subject in subjects]
    pairs = list(zip(subjects, inputs, strict=True))

    results = attribute_all(hr, subjects, window, fold=fold, advance=advance)
    drawn: dict[str, Any] = {"lam": figures.lam_figure(hr, names, results, window)}
    drawn["flow"] = figures.flow_figure(names, [feature_flow(s, [lr]) for s, lr in pairs])
    sheets = [[as_picture(feature, "mean") for feature in group_features(s, lr).values()] for s, lr in pairs]
    drawn["features"] = figures.features_figure(names, sheets, "mean")
    drawn["field"] = figures.field_figure(names, [receptive_field(s, [lr]) for s, lr in pairs])
    groups = [samples(s, [lr]) for s, lr in pairs]
    drawn["cka"] = figures.cka_figure(names, [similarity(g, g) for g in groups])
    table = _cost_table([network_cost(s.name, s.network) for s in subjects])

    parts = [f"<h1>{html.escape(title)}: what the networks do</h1>"]
    sizes: dict[str, list[str]] = {}  # one for each scale
    for name, lr in zip(names, inputs, strict=True):
        sizes.setdefault(f"{lr.shape[1]} x {lr.shape[0]} pixels", []).append(html.escape(name))
    small = "; ".join(size if len(sizes) == 1 else f"{size} for {', '.join(group)}" for size, group in sizes.items())
    used = "The picture" if hr.shape == whole else "A part of the picture"
    parts.append(
        f"<p>{used}, {width} x {height} pixels, was made small ({small}) and enlarged again by "
        f"{html.escape(', '.join(names))}. Each section shows one side of how they did it.</p>"
    )
    for key, (heading, text) in TEXTS.items():
        body = table if key == "cost" else _image(drawn[key], heading)
        parts.append(f"<h2>{heading}</h2><p>{text}</p>{body}")
    _write(file, html.escape(title), parts)
    return {name: result.diffusion_index for name, result in zip(names, results, strict=True)}


def _cost_table(costs: Sequence[NetworkCost]) -> str:
    """A column for each network, so that few of them fit on a phone too and nothing is cut off."""
    kinds = [kind for kind in costs[0].operations.by_kind if any(cost.operations.by_kind[kind] for cost in costs)]
    rows = {
        "Enlarges": [f"{cost.scale} times" for cost in costs],
        "Parameters": [f"{cost.operations.parameters:,}" for cost in costs],
        "Multiply-adds": [_billions(cost.operations.multiply_adds) for cost in costs],
        **{f"&emsp;{kind}": [_billions(cost.operations.by_kind[kind]) for cost in costs] for kind in kinds},
        "Memory to enlarge": [f"{cost.memory.inference / 2**20:,.0f} MiB" for cost in costs],
        "Memory to train": [f"{cost.memory.training / 2**20:,.0f} MiB" for cost in costs],
    }
    names = "".join(f'<th scope="col">{html.escape(cost.name)}</th>' for cost in costs)
    body = "".join(
        f'<tr><th scope="row">{title}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for title, cells in rows.items()
    )
    return f"<div class=wide><table><thead><tr><td></td>{names}</tr></thead><tbody>{body}</tbody></table></div>"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count else "0"


def _image(figure: Any, description: str) -> str:
    buffer = io.BytesIO()
    with need("matplotlib").rc_context(figures.STYLE):
        figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    # letters are as large in all figures; on a phone wide ones scroll
    width = f"{96 * figure.get_figwidth():.0f}px"
    style = f"--width: {width}; width: {width}"
    return f'<div class=wide><img alt="{description}" style="{style}" src="data:image/png;base64,{data}"></div>'


def _write(file: Path, title: str, parts: Sequence[str]) -> None:
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    with written(file), replacing_text(file) as opened:
        opened.write(page)
