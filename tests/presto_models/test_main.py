"""The command line's table is right, and what a person did wrong is said without a stack."""

import importlib

import pytest

from presto_models import __main__ as command_line

pytest.importorskip("tyro")


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_is_there(name):
    module_name, options, what = command_line.COMMANDS[name]
    if module_name.startswith("presto_models.training"):
        pytest.importorskip("lightning")
    module = importlib.import_module(module_name)
    assert callable(module.run) and getattr(module, options).__dataclass_params__.frozen and what


def test_without_a_command_it_says_what_there_is(capsys):
    assert command_line.main([]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in command_line.COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    assert command_line.main(["compose", "--loud"]) == 2
    assert "no command 'compose --loud'" in capsys.readouterr().err


def test_a_mistake_is_a_line_and_not_a_stack(capsys, tmp_path):
    arguments = ["generate", "--prompt", "organ", "--checkpoint", str(tmp_path / "nothing"), "--out"]
    assert command_line.main([*arguments, str(tmp_path / "out.wav")]) == 1
    said = capsys.readouterr().err
    assert "nothing" in said and "Traceback" not in said and said.startswith("presto: ")
    assert not (tmp_path / "out.wav").exists()


def test_help_of_a_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["generate", "--help"])
    assert stopped.value.code == 0 and "--prompt" in capsys.readouterr().out
