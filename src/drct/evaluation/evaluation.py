"""The verb ``drct test`` as a function: options in, report out, files written."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from drct.errors import CheckpointError, DataError, OptionError
from drct.evaluation.benchmark import Advance, Run, Say, Settings, check_writable, write_text
from drct.evaluation.enlargers import Enlarger, locate, open_enlarger
from drct.evaluation.measures import MEASURES
from drct.evaluation.options import EvaluationOptions, RunOptions, TestFile, read_test_file
from drct.evaluation.page import Figure, Layer, write_page
from drct.evaluation.report import Report, number
from drct.evaluation.suites import Suite, find_suites, load_pair, pair_folders
from drct.imaging import resize
from drct.networks import SuperResolutionNetwork, create_network
from drct.networks.registry import options_without_effect
from drct.weights import find_model, load_into, read_weights


def evaluate(options: EvaluationOptions, *, say: Say = print, advance: Advance | None = None) -> Report:
    """Test models on benchmark sets.

    Args:
        options: what, on what, and how.
        say: gets lines that a user should see while it runs.
        advance: gets the current image, how many are done, and how many there are.

    Returns:
        The report; the files that the options name are written.

    Raises:
        DataError: there is no such set, or no image at all could be tested.
        Error: a model cannot be had, an option is not possible, a file cannot be written.
    """
    suites = find_suites(options.data, options.sets, options.scale)
    settings = Settings(options.metrics, options.crop, options.convention, save=options.save)
    # a model that is missing should be told before the first one has run for an hour
    found = [locate(model, options.scale) for model in options.models]
    openers = [functools.partial(_open, model, options.scale, options) for model in found]
    return _run(suites, settings, openers, options, say, advance, options.models)


def evaluate_file(path: Path, options: RunOptions | None = None, *, say: Say = print, advance: Advance | None = None) -> Report:
    """Run a published test option file; ``options`` add to it. Other arguments, result and errors as for :func:`evaluate`.

    Grey images count as RGB, as in the program that these files were written for. Results go to
    ``results/NAME/visualization/SET/IMAGE_SUFFIX.png`` if the file says ``save_img``.
    """
    options = options or RunOptions()
    file, warnings = read_test_file(path)
    dead = [
        f"{path}: 'network_g.{key}' has no effect (the network never read it)" for key in options_without_effect(file.network_g)
    ]
    for warning in [*warnings, *dead]:
        say(warning)
    suites = [
        pair_folders(
            data.name,
            None if data.type == "SingleImageDataset" else data.dataroot_gt,
            data.dataroot_lq,
            file.scale,
            data.filename_tmpl,
        )
        for data in file.datasets.values()
    ]
    metrics = tuple(metric.measure for metric in file.val.metrics.values())
    settings = Settings(metrics, file.crop, "basicsr", save=options.save)
    if file.val.save_img and options.save is None:
        folder = Path("results") / file.name / "visualization"
        suffix = (file.val.suffix or file.name).replace("{", "{{").replace("}", "}}")
        settings = dataclasses.replace(settings, save=folder, save_as=f"{{suite}}/{{image}}_{suffix}.png")
    if file.tile is not None and "tile" not in options.model_fields_set:
        # published tiles are enlarged by the pad on each side, so neighbours share two pads
        of_file = {"tile": file.tile.tile_size, "overlap": 2 * file.tile.tile_pad}
        options = options.model_copy(update={key: value for key, value in of_file.items() if key not in options.model_fields_set})
    opener = functools.partial(_open, _network(path, file, say), file.scale, options, file.name)
    return _run(suites, settings, [opener], options, say, advance, (path, file.path.pretrain_network_g))


def _run(
    suites: list[Suite],
    settings: Settings,
    openers: Sequence[Callable[[], Enlarger]],
    options: RunOptions,
    say: Say,
    advance: Advance | None,
    inputs: Sequence[str | Path | SuperResolutionNetwork],
) -> Report:
    settings = dataclasses.replace(settings, keep_images=options.html is not None, resume=options.resume)
    given = {os.path.realpath(one) for one in inputs if not isinstance(one, SuperResolutionNetwork)}
    for path in (options.json_file, options.markdown, options.html):
        if path is not None:
            if os.path.realpath(path) in given:
                raise OptionError(f"{path} is an input: choose another name")
            check_writable(path)  # now, not when everything was measured
    items = [item for suite in suites for item in suite.items]
    blind = [metric for metric in settings.metrics if metric in MEASURES and MEASURES[metric].needs_hr]  # others are told below
    if blind and items and all(item.hr is None for item in items):
        say(f"not measured without ground truth: {', '.join(MEASURES[metric].label for metric in blind)}")
        settings = dataclasses.replace(settings, metrics=tuple(m for m in settings.metrics if m not in blind))
    run = Run(suites, settings, say=say, advance=advance)
    try:
        for opener in openers:
            run.run(opener())
        if not run.report.results:
            causes = [left.cause for left in run.report.left_out]
            raise DataError(f"no image could be tested: {causes[0] if causes else 'the sets are empty'}")
        _write(run, options)
        run.finish()
    finally:
        run.close()
    return run.report


def _write(run: Run, options: RunOptions) -> None:
    """The files that the options name."""
    report = run.report
    if options.json_file is not None:
        write_text(options.json_file, json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")
    if options.markdown is not None:
        write_text(options.markdown, f"{report.table()}\n\n{report.image_table()}\n")
    if options.html is not None:
        title = f"{', '.join(model.label for model in report.models)} on {', '.join(report.suites)}, x{report.scale}"
        write_page(options.html, title, [report.means_table()], report.footnotes(), _figures(run))


def _open(model: str | Path | SuperResolutionNetwork, scale: int, options: RunOptions, label: str | None = None) -> Enlarger:
    return open_enlarger(
        model,
        scale,
        label=label,
        device=options.device,
        precision=options.precision,
        tile=options.tile,
        overlap=options.overlap,
        ensemble=options.ensemble,
    )


def _figures(run: Run) -> Iterator[Figure]:
    """HR, bicubic and every model for each image."""
    report = run.report
    for suite, item in run.items():
        results = {r.model: r for r in report.results if (r.suite, r.image) == (suite, item.name)}
        pair = load_pair(item, run.scale)
        layers: list[Layer] = []
        if pair.hr is not None:
            layers.append(Layer("HR", functools.partial(_same, pair.hr), icc=pair.icc))
        if "bicubic" not in results:
            layers.append(Layer("bicubic", functools.partial(resize, pair.lr, scale=run.scale), icc=pair.icc))
        for model in report.models:
            if model.label in results:
                values = results[model.label].values
                cells = [number(values.get(metric), MEASURES[metric].digits) for metric in report.metrics]
                layers.append(Layer(model.label, functools.partial(run.sr, model.label, suite, item.name), cells, pair.icc))
        headings = [MEASURES[metric].label for metric in report.metrics]
        yield Figure(suite, item.name, layers, None if pair.hr is None else 0, headings)


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _network(path: Path, file: TestFile, say: Say) -> SuperResolutionNetwork:
    """The network of an option file with its weights; ``strict_load_g: false`` forgives what the network has no place for."""
    chosen = dict(file.network_g)
    kind = chosen.pop("type", None)
    if not isinstance(kind, str):
        raise OptionError(f"{path}: network_g has no 'type'")
    try:
        network = create_network(kind.lower(), scale=file.scale, **chosen)
    except OptionError as error:
        raise OptionError(f"{path}: network_g: {error}") from error
    weights = read_weights(find_model(file.path.pretrain_network_g), key=file.path.param_key_g)
    notices: list[str] = []
    report = load_into(network, weights, strict=file.path.strict_load_g, notices=notices)
    if report.missing or report.mismatched:
        raise CheckpointError(
            f"{weights.path} does not fit the network_g of {path}: {report.problems()}; "
            "what is not trained cannot be measured, whatever strict_load_g says"
        )
    if report.unexpected:
        notices.append(f"{weights.path}: {report.problems()}, left out as strict_load_g is false")
    for notice in notices:
        say(notice)
    return network.eval()
