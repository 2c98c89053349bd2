"""``drct upscale``: images and videos in, larger ones out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from drct.cli.console import Console, printable
from drct.cli.paths import GivenPath

if TYPE_CHECKING:
    from pathlib import Path

    from drct.upscaling import FileResult
    from drct.upscaling.jobs import Job, Jobs
    from drct.upscaling.video import Done

FILES = GivenPath(path_type=None, readable=False)  # those that cannot be read are told of one by one


@click.command(
    epilog="Results are named NAME_x4.png and lie beside the images, or in the output folder; those of a folder lie in FOLDER_x4. "
    "Exit code: 0 all done, 1 some files failed, 2 wrong usage."
)
@click.argument("inputs", nargs=-1, required=True, type=FILES)
@click.option("-o", "--output", type=FILES, help="File for a single image, else folder.")
@click.option("-m", "--model", default="auto", show_default=True, help="Name of a model ('drct models'), weight file, or auto.")
@click.option("--strength", type=float, metavar="0..1", help="How much of the network for degraded photos, instead of looking.")
@click.option("-s", "--scale", type=float, help="Any number above 0, up to 16.  [default: the model's own]")
@click.option("--width", type=int, help="Exact width instead of a scale; the height follows, or give both.")
@click.option("--height", type=int, help="Exact height instead of a scale.")
@click.option("--tile", default="auto", show_default=True, metavar="auto|off|N", help="Side of the tiles in input pixels.")
@click.option("--overlap", type=int, default=32, show_default=True, help="Input pixels that neighbouring tiles share.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--precision", default="auto", show_default=True, help="auto (fp32 on CPUs, bf16 on newer GPUs), fp32, bf16 or fp16.")
@click.option("--ensemble", is_flag=True, help="Average over 8 flips and rotations: a little better, 8 times slower.")
@click.option("--alpha", default="network", show_default=True, metavar="network|resize", help="How transparency is enlarged.")
@click.option("-r", "--recursive", is_flag=True, help="Take folders inside of folders too; the results mirror the tree.")
@click.option("--watch", is_flag=True, help="Go on with what comes into the folders, until Ctrl-C; --json: a line for each file.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist instead of skipping them.")
@click.option(
    "--format",
    metavar="same|png|jpg|webp|avif|tiff|gif|jxl|dzi",
    help="Format of the results.  [default: png; animations, pages and floats stay in theirs]",
)
@click.option("--quality", type=int, help="1 to 100.  [default: JPEG 95, WebP 90, AVIF 85, JPEG XL 90, DeepZoom 90]")
@click.option("--lossless", is_flag=True, help="WebP, AVIF and JPEG XL without loss.")
@click.option("--pyramid", is_flag=True, help="Tiled TIFF with smaller copies, for viewers; -o NAME.dzi makes a DeepZoom.")
@click.option("--strip", is_flag=True, help="Leave out EXIF, XMP, IPTC, text, resolution and tags of videos; the profile stays.")
@click.option("--strips", default="auto", show_default=True, metavar="auto|on|off", help="Hold images in strips: any size fits.")
@click.option("--verify-tiles", is_flag=True, help="Print how much tiles change the result; needs memory for the whole image.")
@click.option("--codec", metavar="h264|h265|av1|vp9|ffv1", help="Of videos.  [default: h264; 10 bits h265; WebM av1]")
@click.option("--crf", type=int, help="Of videos: rate factor, smaller is better.  [default: h264 17, h265 18, av1 22, vp9 20]")
@click.option("--preset", help="Of videos: speed of the encoder.  [default: medium; av1 6]")
@click.option("--start", metavar="SECONDS|H:MM:SS", help="Of videos: where the part begins that is made larger.")
@click.option("--duration", metavar="SECONDS|H:MM:SS", help="Of videos: how long that part is.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document instead.")
def command(inputs: tuple[str, ...], tile: str, quiet: bool, as_json: bool, watch: bool, **values: Any) -> int:
    """Make images and videos larger and sharper: files, folders, any size.

    With --model auto each image is looked at: clean ones go through drct-light, compressed, noisy or blurred ones through
    drct-real-light, whose own size is x4: smaller results are made from that, larger ones go on with drct-light.
    """
    from drct import upscaling
    from drct.errors import OptionError
    from drct.upscaling import Listener, UpscaleOptions
    from drct.upscaling.video import is_video_file

    options = UpscaleOptions(inputs=inputs, tile=int(tile) if tile.isdecimal() else tile, **values)
    console = Console(quiet=quiet, as_json=as_json)

    class Printer(Listener):
        """Lines and the progress bar."""

        total = 0
        done = 0

        def __init__(self) -> None:
            self.parts: dict[Path, float] = {}  # of the files in the networks; several where several devices work

        def started(self, jobs: Jobs) -> None:
            self.total += len(jobs.jobs)
            if jobs.others:
                names = ", ".join(path.name for path in jobs.others[:3]) + (", ..." if len(jobs.others) > 3 else "")
                kinds = "no images or videos by name"
                if any(is_video_file(path) for path in jobs.others):
                    kinds = "no images by name, and videos need PyAV: pip install 'drct[video]'"
                console.note(f"{_files(len(jobs.others))} in the folders left alone, {kinds} ({names})")
            if not self.total:
                console.note("there is nothing to do: no images found" + ("" if options.recursive else " (-r looks into folders)"))

        def progress(self, job: Job, done: float, of: str = "") -> None:
            self.parts[job.source] = done
            now = self.done + sum(self.parts.values())
            console.progress("files", now, self.total, f"{self.done + 1} of {self.total}  {printable(job.source.name)}{of}")

        def frames(self, job: Job, done: Done) -> None:
            rest = f", {_clock((done.total - done.frames) / done.rate)} left" if done.total >= done.frames and done.rate else ""
            total = f" of {done.total}" if done.total else ""
            self.progress(job, done.share, f"  {done.frames}{total} frames, {done.rate:.3g} frames/s{rest}")

        def watching(self) -> None:
            console.note(f"watching {', '.join(inputs)}; Ctrl-C ends it")

        def waiting(self, files: int) -> None:
            console.note(f"waiting for other processes, which have {_files(files)} in work")

        def finished(self, result: FileResult) -> None:
            self.done += 1
            self.parts.pop(result.source, None)
            if as_json and watch:
                console.document(result.to_json(), indent=None)
            for notice in result.notices:
                console.note(f"{result.source}: {notice}")
            if result.error is not None:
                console.error(result.error)
            elif result.status == "skipped":
                console.say(f"{result.target} exists, skipped")
            else:
                console.say(_line(result))
                if result.tile_difference is not None:
                    mean, largest = result.tile_difference
                    console.say(f"  tiled against whole: mean difference {mean:.2e}, largest {largest:.2e} (of 0..1)")

    with console:
        report = upscaling.watch_folders(options, Printer()) if watch else upscaling.upscale(options, Printer())
    for notice in report.notices:
        console.note(notice)
    if as_json and not watch:
        console.document(report.to_json())
    failed = [result for result in report.results if result.status == "failed"]
    if len(report.results) > 1 or watch:
        console.say(f"{report.count('done')} done, {report.count('skipped')} skipped, {report.count('failed')} failed")
    if failed and len(report.results) > 1:
        console.error(f"{len(failed)} of {_files(len(report.results))} failed: {', '.join(str(r.source) for r in failed)}")
    # what was wrong with the options is told file by file, since some of it depends on the file
    return 2 if failed and all(result.code == OptionError.code for result in report.results) else report.exit_code


def _line(result: FileResult) -> str:
    sizes = " -> ".join(f"{size[0]} x {size[1]}" for size in (result.input_size, result.output_size) if size is not None)
    choice = f"; {result.choice}" if result.choice else ""
    frames = "" if result.frames is None else f"{result.frames} frames, "
    return f"{result.source} -> {result.target}  ({sizes}, {frames}{result.seconds:.1f} s{choice})"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
