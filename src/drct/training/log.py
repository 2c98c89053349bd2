"""The log of a run: one JSON object per line, and a picture of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from drct.errors import MissingDependencyError


class Log:
    """Appends to ``log.jsonl``. Lines of iterations that a resumed run will repeat are removed first.

    With ``tensorboard`` the same numbers go to event files in the run's folder too.

    Raises:
        MissingDependencyError: TensorBoard was asked for and is not installed.
    """

    def __init__(self, folder: Path, is_main: bool, iteration: int, tensorboard: bool = False) -> None:
        self.path = folder / "log.jsonl"
        self.is_main = is_main
        self.writer: Any = None
        if is_main and tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError(
                    "--tensorboard needs the package tensorboard: pip install 'drct[tensorboard]'"
                ) from error
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1 if iteration else 0)
        if not is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_log(folder) if r.get("iteration", 0) <= iteration] if iteration else []
        partial = folder / ".log.jsonl.part"  # a full disk must not cost the log of before
        partial.write_text("".join(json.dumps(_plain(r)) + "\n" for r in kept))
        partial.replace(self.path)

    def line(self, record: dict[str, Any]) -> None:
        if self.is_main:
            with open(self.path, "a") as file:
                rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()}
                file.write(json.dumps(_plain(rounded)) + "\n")
        if self.writer is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self.writer.add_scalar(name, value, record["iteration"])
            for dataset, scores in record.get("validation", {}).items():
                for metric, value in scores.items():
                    self.writer.add_scalar(f"{dataset}/{metric}", value, record["iteration"])
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: null stands for them."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All records of a run's log; a last line that a crash cut short is left out."""
    path = folder / "log.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def draw_curve(folder: Path) -> Path | None:
    """Draw the run to ``curve.png``: loss and the first validation metric by iteration, and below what a discriminator answers.

    Returns:
        the picture; None when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    records = read_log(folder)
    judged = [r for r in records if r.get("out_d_real") is not None and r.get("out_d_fake") is not None]
    figure = Figure(figsize=(7, 6 if judged else 4), layout="constrained")
    axes = figure.subplots(2 if judged else 1, sharex=True, squeeze=False)[:, 0]
    left = axes[0]
    losses = [(r["iteration"], r["loss"]) for r in records if r.get("loss") is not None]
    if losses:
        left.plot(*zip(*losses, strict=True), color="tab:blue", linewidth=1)
    axes[-1].set_xlabel("iteration")
    left.set_ylabel("training loss", color="tab:blue")
    right = left.twinx()
    series: dict[str, list[tuple[int, float]]] = {}
    metric = "psnr"
    for r in records:
        for name, scores in r.get("validation", {}).items():
            metric = next(iter(scores))  # by which the best weights are chosen
            if scores[metric] is not None:
                series.setdefault(name, []).append((r["iteration"], scores[metric]))
    for index, (name, points) in enumerate(series.items()):
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, color=f"C{index + 1}", label=name)
    right.set_ylabel("validation " + {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS"}.get(metric, metric))
    if series:
        right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False)  # above: no point is hidden
    for name, label in (("out_d_real", "ground truth"), ("out_d_fake", "output")) if judged else ():
        axes[1].plot([r["iteration"] for r in judged], [r[name] for r in judged], linewidth=1, label=label)
    if judged:
        axes[1].set_ylabel("discriminator (logit)")
        axes[1].legend(loc="center right")
    path = folder / "curve.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
