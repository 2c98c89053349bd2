"""The command line as a whole: verbs, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

from drct import __version__, cli, errors


def test_help_lists_the_verbs_that_exist(capsys):
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert "upscale" in out
    listed = [line.split()[0] for line in out.split("Verbs:")[1].splitlines() if line.strip()]
    assert listed == [verb for verb in cli.VERBS if verb in listed]


def test_every_listed_verb_has_a_command(capsys):
    for verb in cli.cli.list_commands(click.Context(cli.cli)):
        assert cli.run([verb, "--help"]) == 0
        assert f"drct {verb}" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys, json, drct.cli\n"
        "drct.cli.run(['--help'])\n"
        "print(json.dumps(sorted({'torch', 'numpy', 'pyvips', 'pydantic', 'rich'} & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []


def test_python_m_drct():
    done = subprocess.run([sys.executable, "-m", "drct", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"drct {__version__}\n")
    done = subprocess.run([sys.executable, "-m", "drct", "upscale"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["upscael"], "did you mean 'upscale'"),
        ([__file__], "did you mean 'drct upscale ...'"),
        (["--verbose"], "--verbose"),
        (["upscale"], "INPUTS"),
        (["upscale", "a.png", "--scael", "2"], "--scale"),
        (["upscale", "a.png", "--scale", "much"], "much"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


OLDER_CALL = "--launcher belongs to an older call; use: torchrun --nproc-per-node N -m drct train -opt FILE.yml"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--local-rank=0", "train", "-opt", "o.yml"], OLDER_CALL),
        (["--local_rank=0", "train", "-opt", "o.yml", "--launcher", "pytorch"], OLDER_CALL),
        (["train", "-opt", "o.yml", "--launcher", "pytorch"], OLDER_CALL),
        (["train", "--local-rank=1"], OLDER_CALL),
        (["train", "-opt", "o.yml", "--auto_resume"], "--auto_resume is an option of BasicSR; use: --resume auto"),
        (["train", "-opt", "o.yml", "--debug"], "--debug is an option of BasicSR; use: --stop-after N"),
        (
            ["train", "--force_yml", "train:ema_decay=0", "name=a", "-opt", "o.yml"],
            "--force_yml is an option of BasicSR; use: a copy",
        ),
    ],
)
def test_options_of_other_programs_are_answered(capsys, arguments, answer):
    assert cli.run(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"drct: error: {answer}")
    assert err.count("\n") == 1
    for command in ([], ["train"]):
        assert cli.run([*command, "--help"]) == 0
        assert not re.search("--(local|launcher|auto_|debug|force)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (errors.Error("x"), 1),
        (errors.ImageError("x"), 1),
        (errors.CheckpointError("x"), 1),
        (errors.OptionError("x"), 2),
        (errors.DeviceError("x"), 2),
        (errors.ModelNotFoundError("x"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_one_line_and_an_exit_code(monkeypatch, capsys, raised, code):
    @click.command()
    def command() -> None:
        raise raised

    monkeypatch.setattr(cli.Verbs, "get_command", lambda *_: command)
    assert cli.run(["upscale"]) == code
    captured = capsys.readouterr()
    assert captured.err.lstrip("\n") == ("drct: interrupted\n" if code == 130 else "drct: error: x\n")


def test_own_mistakes_are_not_hidden(monkeypatch):
    @click.command()
    def command() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.Verbs, "get_command", lambda *_: command)
    with pytest.raises(ZeroDivisionError):
        cli.run(["upscale"])


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_what_a_verb_returns_is_the_exit_code(monkeypatch, returned, code):
    monkeypatch.setattr(cli.Verbs, "get_command", lambda *_: click.Command("x", callback=lambda: returned))
    assert cli.run(["upscale"]) == code


def test_main_exits():
    with pytest.raises(SystemExit) as caught:
        cli.main(["upscael"])
    assert caught.value.code == 2


def test_an_interruption_amid_imports_ends_the_run():
    code = """
        import sys
        from drct import cli

        pressed = []

        def interrupt(event, arguments):
            if event == "import" and arguments[0] == "numpy.lib" and not pressed:
                pressed.append("Ctrl-C")
                raise KeyboardInterrupt

        sys.addaudithook(interrupt)
        sys.exit(cli.run(["upscale", "missing.png"]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.lstrip()) == (130, "", "drct: interrupted\n")


def test_a_closed_pipe_ends_quietly():
    done = subprocess.run(
        f"{sys.executable} -m drct --help | true", shell=True, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is pretended by /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered: str):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "drct", "models"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr == "drct: error: the output cannot be written: No space left on device\n"


def test_letters_that_the_output_lacks_are_escaped():
    code = "from drct import cli\nfrom drct.cli.console import Console\ncli.run(['--version'])\nConsole().say('日本.png')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "cp1252"}
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, rb"\u65e5\u672c.png")


def test_every_error_is_exported():
    import drct

    known = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.Error)}
    assert known <= set(drct.__all__)


def test_what_does_not_go_with_an_option_file_is_named_as_typed(capsys):
    for option in ("--sets", "--metrics", "--model"):
        assert cli.run(["test", "-opt", "x.yml", option, "a"]) == 2
        assert f"{option} does not go with -opt" in capsys.readouterr().err


def test_a_closed_standard_error_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with cli.console.Console() as console:
        console.say("result")


def test_what_the_system_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*args: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", "folder/a.png")

    monkeypatch.setattr(cli.cli, "main", refused)
    assert cli.run(["models"]) == 1
    assert capsys.readouterr().err == "drct: error: folder/a.png: Permission denied\n"
