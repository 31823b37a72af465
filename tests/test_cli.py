"""The commands explain themselves, and a wrong word is a matter of usage."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.shell.commands import run
from vizora_rt import cli


def commands(group: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command, those of groups too."""
    yield path
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, *path, name)


@pytest.mark.parametrize("arguments", [*commands(cli.command)], ids=" ".join)
def test_every_command_explains_itself(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli.command, [*arguments, "--help"])
    assert done.exit_code == 0
    usage = " ".join(("Usage: vizora-rt", *arguments))
    assert done.output.replace("Usage: command", "Usage: vizora-rt").startswith(usage)
    assert "Example: vizora-rt" in done.output.replace("VIZORA_ENV=development ", "")
    # In the list of its group a command has one line.
    assert "..." not in done.output.replace("[OPTIONS] COMMAND [ARGS]...", "").replace("[ALERT]...", "")


@pytest.mark.parametrize("arguments", [*commands(cli.command)], ids=" ".join)
def test_every_option_explains_itself(arguments: tuple[str, ...]) -> None:
    command: click.Command = cli.command
    for name in arguments:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert [each.name for each in command.params if isinstance(each, click.Option) and not each.help] == []


def test_it_is_a_program(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: vizora-rt ")


def test_a_wrong_option_is_a_matter_of_usage(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--prot", "1")
    assert done.returncode == 2
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
