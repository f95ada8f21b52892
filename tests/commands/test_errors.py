"""Every command refuses bad input in the same way."""

import pytest

from gmem_jax.commands import errors


def raises(error):
  def work():
    raise error

  return work


@pytest.mark.parametrize("error", [ValueError("wrong"), OSError("gone")])
def test_bad_input_is_one_line(error, capsys):
  assert errors.run(raises(error)) == 2
  assert capsys.readouterr().err == f"gmem_jax: {error}\n"


def test_a_fault_of_ours_keeps_its_traceback():
  with pytest.raises(KeyError):
    errors.run(raises(KeyError("ours")))


def test_text_from_a_file_drives_no_terminal(capsys):
  errors.say("name \x1b[2J\r\nnext")
  assert capsys.readouterr().out == "name \\x1b[2J\\r\nnext\n"
