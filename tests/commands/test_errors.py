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


def test_a_message_has_an_end(capsys):
  """Whatever a library, or a name out of a file, makes of it."""
  assert errors.run(raises(ValueError("name " + "x" * 100_000))) == 2
  text = capsys.readouterr().err
  assert text.startswith("gmem_jax: name xxx")
  assert text.endswith("xxx ...\n")
  assert len(text) < 4100


def test_a_fault_of_ours_keeps_its_traceback():
  with pytest.raises(KeyError):
    errors.run(raises(KeyError("ours")))


def test_text_from_a_file_drives_no_terminal(capsys):
  errors.say("name \x1b[2J\r\nnext")
  assert capsys.readouterr().out == "name \\x1b[2J\\r\nnext\n"
