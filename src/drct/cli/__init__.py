"""The command line: one module per verb, imported when its verb is called.

A verb lives in ``drct.cli.VERB`` and exposes ``command``, a click command. What it returns is the exit code (None is 0); a
:class:`drct.Error` that it raises becomes one line on standard error, here and nowhere else.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from drct.cli import console
from drct.errors import DeviceError, Error, ModelNotFoundError, OptionError, did_you_mean
from drct.places import FULL

# In the order of --help. The sentences stand here so that the overview imports no verb.
VERBS = {
    "upscale": "Enlarge images: files, folders, any scale, any size.",
    "test": "Measure a model on benchmark images.",
    "train": "Train a network from an option file.",
    "prepare": "Pack a folder of images for fast training.",
    "compare": "Measure versions of images and show them side by side.",
    "models": "List the models that are bundled, downloadable or local.",
    "doctor": "Tell what this machine can run, and why.",
    "bench": "Measure the speed of models on this machine.",
    "explain": "Show what a network looks at and what it costs.",
    "degrade": "Make low-quality images from good ones.",
    "export": "Write a model in another file format.",
}

FAILED, USAGE, INTERRUPTED = 1, 2, 130
OLDER_CALL = "--launcher belongs to an older call; use: torchrun --nproc-per-node N -m drct train -opt FILE.yml"
USAGE_ERRORS = (OptionError, ModelNotFoundError, DeviceError)  # the command line asks for what cannot be


class Verbs(click.Group):
    """The verbs, found by their modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if importlib.util.find_spec(f"drct.cli.{verb}") is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        # Before torch, which would import it from C code that takes whatever is raised there, Ctrl-C too, for a missing numpy.
        importlib.import_module("numpy")
        command = importlib.import_module(f"drct.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        verbs = self.list_commands(ctx)
        if args and args[0] not in verbs and not args[0].startswith("-"):
            hint = did_you_mean(args[0], verbs) or (" (did you mean 'drct upscale ...'?)" if os.path.exists(args[0]) else "")
            ctx.fail(f"there is no verb '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, VERBS[verb]) for verb in self.list_commands(ctx)])


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from drct import __version__

        click.echo(f"drct {__version__}")
        ctx.exit()


def answered(*names: str, answer: str, **kind: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A hidden option that only other programs have: whoever gives it is told what to use instead, before all other mistakes."""

    def tell(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value and not ctx.resilient_parsing:
            from drct.training.processes import one_voice

            with one_voice():
                raise OptionError(answer)

    return click.option(*names, hidden=True, is_eager=True, expose_value=False, callback=tell, **kind)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@answered("--local-rank", "--local_rank", answer=OLDER_CALL)  # torch.distributed.launch puts it before the verb
def cli() -> None:
    """Image super-resolution by DRCT. 'drct VERB --help' tells more."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 something failed, 2 wrong usage, 130 interrupted."""
    console.accept_all_letters()
    try:
        result = cli.main(args=arguments, prog_name="drct", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Error as error:
        if not error.told:
            console.error(str(error))
        return USAGE if isinstance(error, USAGE_ERRORS) else FAILED
    except (KeyboardInterrupt, click.Abort):
        click.echo("drct: interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        _end_output()  # the reader of our output went away ('drct ... | head')
        return FAILED
    except OSError as error:
        if error.errno not in FULL:
            if error.filename is None:
                raise
            console.error(f"{os.fsdecode(error.filename)}: {error.strerror}")
            return FAILED
        _end_output()
        console.error(f"the output cannot be written: {error.strerror}")
        return FAILED
    return result if isinstance(result, int) else 0


def _end_output() -> None:
    """Nothing more can be written to standard output, not even what is left at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of the ``drct`` command."""
    code = run(arguments)
    if code and os.environ.get("WORLD_SIZE", "1") != "1":
        # One of several processes that train together. What it has told stands; what is left of their connections can abort the
        # interpreter while it ends (seen once, with Gloo), and the exit code would be that of the abort.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
