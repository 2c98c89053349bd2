"""Our table: the bundled models on Set5, Set14 and BSD100 beside published figures.

    python benchmarks/tables.py --data DATASETS --scale 4

``DATASETS`` holds the sets in a usual layout (``Set5/HR`` and so on). Rows without a time were not run here: they are the figures
of the papers. Networks are measured as the published ones were (convention "basicsr"), so a grey image, of which Set14 has one,
counts as RGB; bicubic is measured with grey images as they are, as its published figures were.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from pathlib import Path

import drct
from drct.evaluation import EvaluationOptions, Report, evaluate
from drct.evaluation.report import markdown_table, number

SETS = ("Set5", "Set14", "BSD100")
# name, parameters in thousands, training images, figures on SETS; from the papers
PUBLISHED: dict[int, list[tuple[str, float | None, str, tuple[str, ...]]]] = {
    2: [("DRCT", 13_992, "DF2K", ("38.62", "34.84", "32.62"))],
    3: [],
    4: [
        ("bicubic", None, "", ("28.42 / 0.8104", "26.00 / 0.7027", "25.96 / 0.6675")),
        ("SwinIR-light", 930, "DIV2K", ("32.44", "28.77", "27.69")),
        ("OmniSR", 792, "DIV2K", ("32.49", "28.78", "27.71")),
        ("HiT-SRF", 866, "DIV2K", ("32.55", "28.87", "27.75")),
        ("PFT-light", 792, "DIV2K", ("32.63", "28.97", "27.78")),
        ("ESC", 968, "DIV2K", ("32.68", "28.93", "27.80")),
        ("HAT", 20_773, "DF2K", ("33.04", "29.23", "28.00")),
        ("DRCT", 14_140, "DF2K", ("33.11", "29.35", "28.18")),
        ("HAT-L", 40_847, "ImageNet, DF2K", ("33.30", "29.47", "28.09")),
        ("DRCT-L", 27_581, "ImageNet, DF2K", ("33.37", "29.54", "28.16")),
    ],
}


def main() -> None:
    shared = os.environ.get("DRCT_SHARED")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path(shared) / "data/benchmarks" if shared else None, help="folder with the sets"
    )
    parser.add_argument("--scale", type=int, default=4, choices=sorted(PUBLISHED))
    parser.add_argument("--sets", default=",".join(SETS), help="some of Set5,Set14,BSD100")
    parser.add_argument("--models", nargs="*", help="default: the bundled models of this scale")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ensemble", action="store_true", help="average over eight flips and rotations")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give --data, the folder with the benchmark sets, or set DRCT_SHARED")
    sets = tuple(arguments.sets.split(","))
    if not set(sets) <= set(SETS):
        parser.error(f"--sets takes some of {','.join(SETS)}")
    bundled = [card.name for card in drct.list_models() if card.location == "bundled" and card.scale == arguments.scale]
    models = arguments.models if arguments.models is not None else bundled
    common = {
        "data": arguments.data,
        "sets": sets,
        "scale": arguments.scale,
        "device": arguments.device,
        "ensemble": arguments.ensemble,
    }
    try:
        reports = [evaluate(EvaluationOptions(models=("bicubic",), **common))]
        if models:
            reports.append(evaluate(EvaluationOptions(models=models, convention="basicsr", **common)))
    except drct.Error as error:
        sys.exit(f"tables: {error}")
    print("\n".join(table(arguments.scale, sets, reports)))
    print(f"\nMeasured on {datetime.date.today()}: {shlex.join(['python', 'benchmarks/tables.py', *public(sys.argv[1:])])}")
    print("Rows without a time are the papers' figures. PSNR in dB and SSIM on Y, as many border pixels cut as the scale.")
    for line in dict.fromkeys(line for report in reports for line in report.footnotes() if line.startswith("left out")):
        print(line)


def table(scale: int, sets: tuple[str, ...], reports: list[Report]) -> list[str]:
    """Lines of a Markdown table: ours first, then what was published, worst first."""
    header = ["Model", "Trained on", "Params", "Mult-adds", *sets, "s/image"]
    rows = []
    for report in reports:
        for model in report.models:
            values = [
                f"{number(report.mean(model.label, s, 'psnr'), 2)} / {number(report.mean(model.label, s, 'ssim'), 4)}" for s in sets
            ]
            parameters = f"{model.parameters / 1e3:,.0f} K" if model.parameters else ""
            cost = f"{model.multiply_adds / 1e9:.1f} G" if model.multiply_adds else ""
            seconds = f"{number(report.seconds(model.label), 2)} ({model.device})"
            rows.append([f"**{model.label}**", training(model.label), parameters, cost, *values, seconds])
    for name, thousands, images, figures in PUBLISHED[scale]:
        chosen = [figure for figure, s in zip(figures, SETS, strict=True) if s in sets]
        rows.append([f"{name}, published", images, f"{thousands:,.0f} K" if thousands else "", "", *chosen, ""])
    return markdown_table(header, rows)


def training(name: str) -> str:
    """What a bundled model's card says about its training."""
    return next((card.training for card in drct.list_models() if card.name == name), "")


def public(arguments: list[str]) -> list[str]:
    """The arguments without the place of the data on this machine."""
    shown = list(arguments)
    for i, argument in enumerate(shown):
        if i and shown[i - 1] == "--data":
            shown[i] = "DATASETS"
        elif argument.startswith("--data="):
            shown[i] = "--data=DATASETS"
    return shown


if __name__ == "__main__":
    main()
