"""Figures that a paper could print, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from drct.errors import OptionError
from drct.explain.extras import need
from drct.explain.field import Field
from drct.explain.flow import MEASURES, Flow
from drct.explain.lam import Attribution, Window, density
from drct.imaging import replacing_text
from drct.places import check_place, written

SUFFIXES = (".png", ".pdf", ".svg")
ALPHA = 0.5  # of the image under a map
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by colour-blind readers too
MARKERS = "osD^vP"
LETTERS = 110  # of a legend that fit beside each other under a figure of three panels
COLUMNS = 4  # panels beside each other that stay readable on a page
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def check_path(path: Path, inputs: Sequence[str | os.PathLike[str]] = ()) -> None:
    """Raise OptionError unless a figure can be called so, is no input, and can be written: now, not when all was computed."""
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{path} has no suffix of a figure: use {', '.join(SUFFIXES)}")
    if any(path.resolve() == Path(i).resolve() for i in inputs):
        raise OptionError(f"{path} is an input: choose another output")
    check_place(path)


def save(figure: Any, path: Path) -> Path:
    """Write a figure by its suffix, at 200 dots per inch; folders are made. A file that was there stays until the new one is whole.

    Raises:
        OptionError: the file cannot be written there.
        Error: the disk is full.
    """
    drawn = io.BytesIO()
    with need("matplotlib").rc_context(STYLE):
        figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=200, facecolor="white")
    with written(path), replacing_text(path) as file:
        file.buffer.write(drawn.getbuffer())
    return path


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """An empty figure of a size in inches, drawn in the style of the house."""
    matplotlib = need("matplotlib")
    with matplotlib.rc_context(STYLE):
        yield need("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def label(name: str, width: int = 22) -> str:
    """A name broken into lines that fit beside or above a panel."""
    return textwrap.fill(verbatim(name), width)


def verbatim(name: str) -> str:
    """A name as it is: no formulas between dollars, and no bytes that are not text."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def panels(figure: Any, count: int) -> list[Any]:
    """Axes for ``count`` panels, at most :data:`COLUMNS` in a row."""
    columns = min(COLUMNS, count)
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    return axes[:count]


def lam_figure(hr: np.ndarray, names: Sequence[str], results: Sequence[Attribution], window: Window) -> Any:
    """One row for each network: HR with the window boxed, map, map over the image, density over the image, SR."""
    titles = ("HR and window", "Attribution", "Attribution over HR", "Density over HR", "SR")
    height, width = hr.shape[:2]
    side = 1.75
    rows = len(results)
    # the labels and the bar leave the panels a little less than their side
    with new_figure(len(titles) * side + 0.9, rows * (0.95 * side * height / width + 0.1) + 0.35) as figure:
        axes = figure.subplots(rows, len(titles), squeeze=False)
        patches = need("matplotlib.patches")
        extent = (0, width, height, 0)
        image: Any = None
        for row, name, result in zip(axes, names, results, strict=True):
            under = hr.astype(np.float32) / 255
            panels = (hr, result.map, None, None, result.sr[:height, :width])
            for ax, panel in zip(row, panels, strict=True):
                if panel is not None and panel.ndim == 3:
                    ax.imshow(panel, extent=extent)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(True)
                ax.spines[:].set_linewidth(0.5)
            image = row[1].imshow(result.map, cmap="Reds", vmin=0, vmax=1, extent=extent, interpolation="nearest")
            for ax, values in ((row[2], result.map), (row[3], density(result.map))):
                ax.imshow(under.mean(2), cmap="gray", vmin=0, vmax=1, extent=extent)
                ax.imshow(coloured(values), extent=extent, interpolation="nearest")
            for ax in row:
                ax.set(xlim=(0, width), ylim=(height, 0))
            for ax in (row[0], row[4]):
                ax.add_patch(patches.Rectangle((window.x, window.y), window.size, window.size, fill=False, ec="red", lw=1.2))
            row[0].set_ylabel(f"{label(name)}\nDI {result.diffusion_index:.2f}")
        for ax, title in zip(axes[0], titles, strict=True):
            ax.set_title(title)
        bar = figure.colorbar(image, ax=axes, shrink=0.8 if rows == 1 else 0.9, pad=0.01, aspect=18 * rows)
        bar.set_label("attribution / maximum")
    return figure


def coloured(values: np.ndarray) -> np.ndarray:
    """A map in the colours of the bar, half transparent; RGBA."""
    rgba = np.array(need("matplotlib").colormaps["Reds"](values))
    rgba[..., 3] = 1 - ALPHA
    return rgba


def flow_figure(names: Sequence[str], flows: Sequence[Flow]) -> Any:
    """Feature intensity after every group: a panel for each measure, a curve for each network."""
    # a legend leaves out what begins with "_"
    labels = [" " + label(name, 44) if name.startswith("_") else label(name, 44) for name in names]
    lines = [line for text in labels for line in text.split("\n")]
    columns = min(COLUMNS, len(names), LETTERS // (max(map(len, lines)) + 8))  # so many for the piece of curve before a name
    rows = -(-len(lines) // columns)
    with new_figure(3.1 * len(MEASURES), 2.75 + 0.15 * rows) as figure:
        axes = figure.subplots(1, len(MEASURES))
        longest = max(len(flow.groups) for flow in flows)
        for ax, (key, title) in zip(axes, MEASURES.items(), strict=True):
            for i, flow in enumerate(flows):
                groups = np.arange(1, len(flow.groups) + 1)
                # where colours begin again, with other markers
                colour, marker = COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
                wider = 1.2 * min(len(names) - 1 - i, 4)  # than what is drawn later: equal curves show as a core and its rim
                ax.plot(groups, flow.measures[key], color=colour, marker=marker, ms=4 + wider, mec="white", mew=0.5, lw=1.4 + wider)
            ax.set(title=title, xlabel="group", xticks=ticks(longest), ylim=(0, None))
            ax.grid(alpha=0.3, lw=0.5)
        axes[0].set_ylabel("feature intensity (no unit)")
        figure.legend(axes[0].get_lines(), labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def ticks(count: int) -> np.ndarray:
    """Numbers 1..count, at most about eight of them."""
    return np.arange(1, count + 1, -(-count // 8))


def features_figure(names: Sequence[str], sheets: Sequence[Sequence[np.ndarray]], show: str) -> Any:
    """A row for each network, a column for each group; a row has one scale, so that features that fade look faded.

    Not with ``"pca"``, whose colours are stretched map by map.
    """
    columns, side = max(map(len, sheets)), 1.35
    height, width = sheets[0][0].shape[:2]
    with new_figure(columns * side + 1.3, len(names) * (side * height / width + 0.1) + 0.4) as figure:
        axes = figure.subplots(len(names), columns, squeeze=False)
        for row, name, sheet in zip(axes, names, sheets, strict=True):
            low = 0.0 if show == "mean" else float(min(np.min(panel) for panel in sheet))
            high = float(max(np.max(panel) for panel in sheet))
            image: Any = None
            for ax, panel in zip(row, sheet, strict=False):
                image = ax.imshow(panel, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
            for ax in row:
                ax.set(xticks=[], yticks=[], box_aspect=height / width)  # also where there is no such group
                ax.spines[:].set_visible(False)
            row[0].set_ylabel(label(name))
            if show != "pca":
                bar = figure.colorbar(image, ax=row, shrink=0.85, pad=0.01, aspect=14)
                bar.set_label("mean absolute value" if show == "mean" else f"channel {show}", fontsize=8)
        for i, ax in enumerate(axes[0]):
            ax.set_title(f"group {i + 1}")
    return figure


def field_figure(names: Sequence[str], fields: Sequence[Field]) -> Any:
    """Effective receptive fields beside each other, on a logarithmic scale of three decades."""
    colors = need("matplotlib.colors")
    columns, rows = min(COLUMNS, len(names)), -(-len(names) // COLUMNS)
    with new_figure(2.1 * columns + 0.9, 2.6 * rows) as figure:
        axes = panels(figure, len(names))
        image: Any = None
        for ax, name, field in zip(axes, names, fields, strict=True):
            h, w = field.map.shape
            extent = (-(w // 2) - 0.5, w - w // 2 - 0.5, h - h // 2 - 0.5, -(h // 2) - 0.5)
            image = ax.imshow(np.maximum(field.map, 1e-3), cmap="magma", norm=colors.LogNorm(1e-3, 1), extent=extent)
            square = field.square(0.9, "pixels").replace(" (", "\n(")
            ax.set(xlabel="LR pixels from the middle", title=f"{label(name)}\n90 % in {square}")
        for ax in axes[::columns]:
            ax.set_ylabel("LR pixels from the middle")
        figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02).set_label("gradient / maximum")
    return figure


def cka_figure(names: Sequence[str], matrices: Sequence[np.ndarray]) -> Any:
    """Similarity of the groups of each network to each other."""
    columns, rows = min(COLUMNS, len(names)), -(-len(names) // COLUMNS)
    with new_figure(2.1 * columns + 0.9, 2.5 * rows) as figure:
        axes = panels(figure, len(names))
        image: Any = None
        for ax, name, matrix in zip(axes, names, matrices, strict=True):
            n = len(matrix)
            image = ax.imshow(matrix, cmap="viridis", vmin=0, vmax=1, extent=(0.5, n + 0.5, n + 0.5, 0.5))
            ax.set(title=label(name), xlabel="group", xticks=ticks(n), yticks=ticks(n))
        for ax in axes[::columns]:
            ax.set_ylabel("group")
        figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02).set_label("linear CKA (1: same)")
    return figure
