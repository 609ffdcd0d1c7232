"""What every verb shares: values of options, the exit rule, errors in one line."""

import argparse

import pytest

from unimed.commands import VERBS
from unimed.commands.cli import main, run_verb
from unimed.commands.common import exit_code, guarded
from unimed.registry import RegistryError


@pytest.mark.parametrize(("finished", "failed", "code"), [(3, 0, 0), (0, 0, 0), (2, 1, 2), (0, 2, 1)])
def test_exit_codes(finished, failed, code):
    assert exit_code(finished, failed) == code


@pytest.mark.parametrize(
    "error", [OSError("disk\nfull"), ValueError("no"), RegistryError("unknown"), ImportError("extra"), MemoryError()]
)
def test_errors_of_the_input_are_one_line(error, capsys):
    def work(_):
        raise error

    assert guarded(work, argparse.Namespace()) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


def test_mistakes_of_the_package_keep_their_traceback():
    def work(_):
        return None.shape

    with pytest.raises(AttributeError):
        guarded(work, argparse.Namespace())


def test_an_interruption_is_one_line(capsys):
    def work(_):
        raise KeyboardInterrupt

    assert guarded(work, argparse.Namespace()) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_of_verbs(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
    assert main([]) == 1
    assert main(["predikt"]) == 1 and "did you mean 'predict'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_refuses_an_unknown_flag(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        code = run_verb(verb, ["--help"])
        raise SystemExit(code)
    assert stopped.value.code == 0
    assert f"usage: unimed {verb}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        code = run_verb(verb, ["--no-such-flag"])
        raise SystemExit(code)
    assert stopped.value.code == 1
