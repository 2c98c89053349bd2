"""A web page in one file that lays pictures over each other: a slider for each image, and difference maps.

Everything is in the file: pictures as lossless WebP, style and script. Differences are drawn by the browser, by blending two layers
and colouring what is left, so that they cost no bytes. Nothing is fetched from anywhere.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from drct.imaging import Picture, replacing_text, to_depth, write
from drct.places import written

WEBP_LIMIT = 16383  # pixels a side
GAIN = 8  # of difference maps


@dataclasses.dataclass(frozen=True)
class Layer:
    """One picture of a figure.

    Attributes:
        label: its name in the menus.
        pixels: gives ``(H, W, 3)`` or ``(H, W, 1)``, uint8 or uint16; called when the figure is written.
        values: cells of its row in the table below the picture; may be empty.
        icc: colour profile of the pixels.
    """

    label: str
    pixels: Callable[[], np.ndarray]
    values: Sequence[str] = ()
    icc: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """Pictures of one size that can be laid over each other.

    Attributes:
        group: what the page can be filtered by, the name of a set.
        title: name of the image.
        layers: at least two.
        reference: index of the layer that differences are taken to; None for no difference maps.
        headings: of the columns of ``values``.
    """

    group: str
    title: str
    layers: Sequence[Layer]
    reference: int | None
    headings: Sequence[str] = ()


def write_page(path: Path, title: str, tables: Sequence[str], notes: Sequence[str], figures: Iterable[Figure]) -> None:
    """Write the page; figures are taken one by one, so that memory holds one at a time.

    Args:
        path: the HTML file; it appears complete or not at all.
        title: heading.
        tables: Markdown tables to show above the figures.
        notes: lines below the tables.
        figures: in the order of the page.

    Raises:
        OptionError: the file cannot be written there.
        Error: the disk is full.
    """
    with written(path), replacing_text(path) as file:
        _write_parts(file, title, tables, notes, figures)


def _write_parts(file: TextIO, title: str, tables: Sequence[str], notes: Sequence[str], figures: Iterable[Figure]) -> None:
    file.write(_HEAD.format(title=html.escape(title), style=_STYLE, gain=round(GAIN / 3, 3)))
    for table in tables:
        file.write(_table(table))
    if notes:
        file.write("<ul class=notes>" + "".join(f"<li>{html.escape(note)}" for note in notes) + "</ul>\n")
    file.write(_CONTROLS)
    for figure in figures:
        file.write(_figure(figure))
    file.write(_TAIL.format(script=_SCRIPT.replace("GAIN", str(GAIN))))


def _figure(figure: Figure) -> str:
    pictures = [to_depth(layer.pixels(), "uint8") for layer in figure.layers]
    height, width = pictures[0].shape[:2]
    labels = {"labels": [layer.label for layer in figure.layers], "reference": figure.reference}
    data = [_embedded(picture, layer.icc) for picture, layer in zip(pictures, figure.layers, strict=True)]
    rows = [[layer.label, *layer.values] for layer in figure.layers if layer.values]
    values = _rows([["", *figure.headings], *rows], "values") if rows else ""
    return _FIGURE.format(
        group=html.escape(figure.group, quote=True),
        labels=html.escape(json.dumps(labels), quote=True),
        title=html.escape(figure.title),
        comma=", " if figure.group else "",
        width=width,
        height=height,
        values=values,
        data=json.dumps(data),
    )


def _embedded(picture: np.ndarray, icc: bytes | None) -> str:
    """A picture as a data address."""
    kind = "webp" if max(picture.shape) <= WEBP_LIMIT else "png"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"picture.{kind}"
        write(path, Picture(picture, icc=icc), lossless=True)
        return f"data:image/{kind};base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _table(markdown: str) -> str:
    """A Markdown table as HTML; lines that belong to no table become paragraphs."""
    rows, texts = [], []
    for line in markdown.splitlines():
        if line.startswith("|-"):
            continue
        if line.startswith("|"):
            rows.append([cell.strip().replace("\\|", "|") for cell in line.strip("| ").split(" | ")])
        elif line.strip():
            texts.append(f"<p>{html.escape(line)}</p>")
    return "".join(texts) + "<div class=scroll>" + _rows(rows, "summary") + "</div>\n"


def _rows(rows: Sequence[Sequence[str]], kind: str) -> str:
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in rows[0])
    body = ""
    for name, *cells in rows[1:]:
        values = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        body += f"<tr><th scope=row>{html.escape(name)}</th>{values}</tr>"
    return f"<table class={kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_HEAD = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<svg width="0" height="0" aria-hidden="true"><filter id="heat" color-interpolation-filters="sRGB" x="0" y="0" width="1" height="1">
<feColorMatrix values="{gain} {gain} {gain} 0 0  {gain} {gain} {gain} 0 0  {gain} {gain} {gain} 0 0  0 0 0 1 0"/>
<feComponentTransfer><feFuncR type="table" tableValues="0 .34 .73 .98 .99"/><feFuncG type="table" tableValues="0 .06 .22 .56 1"/>
<feFuncB type="table" tableValues=".02 .43 .33 .04 .64"/></feComponentTransfer></filter></svg>
<header class="top"><h1>{title}</h1></header>
<main>
"""

_CONTROLS = """<nav class="controls" aria-label="All figures">
<label>Show <select id="group"><option value="">all sets</option></select></label>
<label>Left <select id="left"></select></label>
<label>Right <select id="right"></select></label>
<label>Zoom <select id="zoom"><option value="">fit</option><option value="1">100 %</option><option value="2">200 %</option>
<option value="4">400 %</option></select></label>
<span id="count"></span>
</nav>
<div class="figures">
"""

_FIGURE = """<figure data-group="{group}" data-labels="{labels}" data-width="{width}" data-height="{height}">
<figcaption><b>{title}</b> <span>{group}{comma}{width} × {height}</span>
<button type="button" class="wide" aria-pressed="false">wide</button></figcaption>
<div class="view"><div class="stage">
<div class="side left"></div><div class="side right"></div><div class="divider"></div>
<input type="range" min="0" max="1000" step="10" value="500" aria-label="Divider between left and right, {title}">
</div></div>
<div class="picks"><select class="left" aria-label="Left picture"></select>
<select class="right" aria-label="Right picture"></select></div>
{values}
<script type="application/json">{data}</script>
</figure>
"""

_TAIL = """</div>
</main>
<script>{script}</script>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --back: #f3f3f1; --card: #fff; --ink: #1d1d1f; --soft: #6b6b70; --line: #d9d9d6; --mark: #0a66c2 }
@media (prefers-color-scheme: dark) {
  :root { --back: #18181a; --card: #232326; --ink: #ececee; --soft: #a0a0a6; --line: #3a3a3e; --mark: #6db3ff }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.5rem; font-weight: 650 }
h1, li, figcaption { overflow-wrap: anywhere }
.top, main { max-width: 1640px; margin: 0 auto; padding: 1.2rem 1.5rem 0 }
main { padding-bottom: 3rem }
p { margin: .4rem 0 }
.notes { margin: .8rem 0 1.2rem; padding-left: 1.2rem; color: var(--soft); font-size: .86rem }
.scroll { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; white-space: nowrap; font-weight: 400 }
th:first-child { text-align: left; padding-right: 1.6rem }
thead th { color: var(--soft); border-bottom: 1px solid var(--line) }
tbody th { font-weight: 600 }
.controls { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center;
  margin: 0 -1.5rem 1rem; padding: .6rem 1.5rem; background: var(--back); border-bottom: 1px solid var(--line); font-size: .9rem }
.controls span { color: var(--soft); margin-left: auto }
select { font: inherit; font-size: .9rem; padding: .15rem .3rem; max-width: 16rem; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 5px }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 540px), 1fr)); gap: 1.2rem; align-items: start }
figure { margin: 0; padding: .9rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; min-width: 0 }
[hidden] { display: none !important }
figure.whole { grid-column: 1 / -1 }
figcaption { display: flex; align-items: baseline; margin-bottom: .5rem }
figcaption span { color: var(--soft); font-size: .86rem; margin-left: .6rem; flex: none; max-width: 60% }
button { font: inherit; font-size: .8rem; flex: none; margin-left: auto; padding: .05rem .5rem; color: var(--soft);
  background: none; border: 1px solid var(--line); border-radius: 5px; cursor: pointer }
button[aria-pressed=true] { color: var(--ink); border-color: var(--mark) }
.view { overflow: auto; max-height: 85vh; background: #808080; border-radius: 3px }
.stage { position: relative; --split: 50%; overflow: hidden; container-type: size }
.side { position: absolute; inset: 0; isolation: isolate }
.side img { position: absolute; inset: 0; width: 100%; height: 100%; display: block }
.side img + img { mix-blend-mode: difference }
.side.heat { filter: url(#heat) }
.side.left { clip-path: inset(0 calc(100% - var(--split)) 0 0) }
.side.right { clip-path: inset(0 0 0 var(--split)) }
.pixels img { image-rendering: pixelated }
.divider { position: absolute; top: 0; bottom: 0; left: var(--split); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 0 1px rgb(0 0 0 / .45); pointer-events: none }
.divider::after { content: "\\2194"; position: absolute; top: 50%; left: 50%; width: 30px; height: 30px; margin: -15px 0 0 -15px;
  border-radius: 50%; background: #fff; color: #222; font: 16px/30px system-ui, sans-serif; text-align: center;
  box-shadow: 0 0 0 1px rgb(0 0 0 / .35) }
@container (max-height: 60px) or (max-width: 60px) { .divider::after { display: none } }
.stage input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize }
.stage input:focus-visible + *, .stage:focus-within .divider { background: var(--mark) }
.picks { display: flex; justify-content: space-between; gap: .6rem; margin: .5rem 0 .2rem }
.values { width: 100% }
@media print {
  .controls, .wide, .stage input { display: none }
  .scroll, .view { overflow: visible; max-height: none }
  th, td { padding-right: .5rem }
  th { white-space: normal }
  th:first-child { overflow-wrap: anywhere }
  .figures { display: block }
  figure { break-inside: avoid }
  figure + figure { margin-top: 1.2rem }
  main { padding-bottom: 0 }
  .stage { width: var(--fit) !important; print-color-adjust: exact }
  .picks select { appearance: none; max-width: 48%; padding: 0; border: 0 }
  .picks .right { text-align-last: right }
}
"""

_SCRIPT = """
"use strict";
const figures = [...document.querySelectorAll("figure")];
const all = { left: document.getElementById("left"), right: document.getElementById("right") };
const data = new Map(), embedded = new Map(), addresses = new Map();

function described(figure) {
  if (!data.has(figure)) data.set(figure, JSON.parse(figure.dataset.labels));
  return data.get(figure);
}

// choices are named "i" for a picture and "i-r" for its difference to the reference
function choices(figure) {
  const { labels, reference } = described(figure);
  const pictures = labels.map((label, i) => ({ group: "Picture", text: label, value: String(i) }));
  if (reference === null) return pictures;
  const group = "Difference to " + labels[reference] + ", times GAIN";
  const differences = labels.map((label, i) =>
    ({ group, text: "|" + label + " \u2212 " + labels[reference] + "|", value: i + "-" + reference }));
  return pictures.concat(differences.filter((_, i) => i !== reference));
}

function fill(select, choices) {
  const groups = new Map();
  for (const { group, text, value } of choices) {
    if (!groups.has(group)) {
      groups.set(group, document.createElement("optgroup"));
      groups.get(group).label = group;
    }
    groups.get(group).append(new Option(text, value));
  }
  select.replaceChildren(...groups.values());
}

function pictures(figure) {
  if (!embedded.has(figure)) embedded.set(figure, JSON.parse(figure.querySelector("script").textContent));
  return embedded.get(figure);
}

function address(figure, i) {
  const made = addresses.get(figure) || [];
  addresses.set(figure, made);
  if (!made[i]) {
    const [head, body] = pictures(figure)[i].split(",");
    const bytes = Uint8Array.from(atob(body), c => c.charCodeAt(0));
    made[i] = URL.createObjectURL(new Blob([bytes], { type: head.slice(5).split(";")[0] }));
  }
  return made[i];
}

function show(figure, name) {
  const choice = figure.querySelector(".picks ." + name).value, side = figure.querySelector(".side." + name);
  side.replaceChildren(...choice.split("-").map(i => {
    const image = new Image();
    image.alt = described(figure).labels[i];
    image.draggable = false;
    image.src = address(figure, Number(i));
    return image;
  }));
  side.classList.toggle("heat", choice.includes("-"));
}

function zoom(figure) {
  const stage = figure.querySelector(".stage"), view = figure.querySelector(".view");
  const { width, height } = figure.dataset, wanted = document.getElementById("zoom").value;
  stage.style.aspectRatio = width + " / " + height;
  stage.style.setProperty("--fit", "min(100%, " + width + "px, 36vh * " + width / height + ")");
  stage.style.width = wanted ? width * wanted + "px" : "min(100%, " + width + "px)";
  stage.style.margin = "0 auto";
  stage.classList.toggle("pixels", Number(wanted) > 1);
  view.scrollLeft = (view.scrollWidth - view.clientWidth) / 2;
}

// the menus at the top hold what any figure has, by what is written: figures may lack pictures
const every = new Map(figures.flatMap(choices).map(choice => [choice.text, { ...choice, value: choice.text }]));
for (const name of ["left", "right"]) {
  fill(all[name], every.values());
  if (figures.length) all[name].value = choices(figures[0])[standard(figures[0], name)].text;
}

function standard(figure, name) {
  const { labels, reference } = described(figure);
  return name === "right" ? labels.length - 1 : reference === 0 && labels.length > 2 ? 1 : 0;
}

// false where the figure has no such picture
function choose(figure, name) {
  const found = choices(figure).find(choice => choice.text === all[name].value);
  if (found) figure.querySelector(".picks ." + name).value = found.value;
  return found !== undefined;
}

const started = new Set();

function start(figure) {
  if (started.has(figure)) return;
  started.add(figure);
  for (const name of ["left", "right"]) {
    const select = figure.querySelector(".picks ." + name);
    fill(select, choices(figure));
    if (!choose(figure, name)) select.value = String(standard(figure, name));
    select.addEventListener("change", () => show(figure, name));
    show(figure, name);
  }
  figure.querySelector("input").addEventListener("input", event =>
    figure.querySelector(".stage").style.setProperty("--split", event.target.value / 10 + "%"));
}

document.querySelectorAll("button.wide").forEach(button => button.addEventListener("click", () => {
  const figure = button.closest("figure");
  button.setAttribute("aria-pressed", String(figure.classList.toggle("whole")));
  zoom(figure);
}));

const watcher = new IntersectionObserver(entries => entries.forEach(entry => {
  if (entry.isIntersecting) start(entry.target);
}), { rootMargin: "600px" });
window.addEventListener("beforeprint", () => figures.filter(figure => !figure.hidden).forEach(start));

for (const name of ["left", "right"]) all[name].addEventListener("change", () => started.forEach(figure => {
  if (choose(figure, name)) show(figure, name);
}));
document.getElementById("zoom").addEventListener("change", () => figures.forEach(zoom));
const group = document.getElementById("group");
const groups = new Set(figures.map(figure => figure.dataset.group));
groups.forEach(name => group.append(new Option(name, name)));
group.parentElement.hidden = groups.size < 2;
group.addEventListener("change", filter);

function filter() {
  figures.forEach(figure => { figure.hidden = group.value !== "" && figure.dataset.group !== group.value; });
  const shown = figures.filter(figure => !figure.hidden).length;
  document.getElementById("count").textContent = shown + (shown === 1 ? " image" : " images");
}

figures.forEach(zoom);
filter();
figures.forEach(figure => watcher.observe(figure));
"""
