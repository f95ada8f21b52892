"""The command `gmem_jax`."""

import runpy
import subprocess
import sys

import pytest

from gmem_jax import main as main_module
from gmem_jax.commands import console


@pytest.fixture
def started(monkeypatch):
  """Gives the command line; returns (module, arguments) that it starts."""

  def started(*arguments: str) -> tuple[str, list[str]]:
    calls = []

    def run_module(module, run_name, alter_sys):
      assert (run_name, alter_sys) == ("__main__", True)
      calls.append((module, sys.argv[1:]))

    monkeypatch.setattr(runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", ["gmem_jax", *arguments])
    with pytest.raises(SystemExit) as caught:
      console.main()
    assert caught.value.code == 0
    (call,) = calls or [("", [])]
    return call

  return started


def test_every_mode_and_program_has_a_name(started):
  assert main_module._MODES.keys() <= console.COMMANDS.keys()
  assert started("train", "--config=digits") == (
    "gmem_jax.main", ["--mode=train", "--config=digits"],
  )  # fmt: skip
  assert started("evaluate", "--config=x") == (
    "gmem_jax.main", ["--mode=evaluate", "--config=x"],
  )  # fmt: skip
  assert started("evaluate", "score", "A", "B") == (
    "gmem_jax.evaluate", ["score", "A", "B"],
  )  # fmt: skip
  assert started("bank", "info", "B") == ("gmem_jax.bank", ["info", "B"])
  for name in console.COMMANDS:
    assert started(name)[0].startswith("gmem_jax.")


def test_version_and_help(started, capsys):
  started("--version")
  said = capsys.readouterr().out
  assert said.startswith("gmem_jax 0.")
  assert ", jax 0." in said
  assert said.endswith(", cpu: 4 x cpu\n")
  started("--help")
  said = capsys.readouterr().out
  assert all(f"\n  {name} " in said for name in console.COMMANDS)


def test_what_is_no_command_is_one_line(monkeypatch, capsys):
  for arguments, message in (
    (
      ["trian"],
      "gmem_jax: trian: there is no such command; did you mean train?",
    ),
    (["?"], "gmem_jax: ?: there is no such command; see gmem_jax --help"),
    ([], "usage: gmem_jax COMMAND"),
  ):
    monkeypatch.setattr(sys, "argv", ["gmem_jax", *arguments])
    with pytest.raises(SystemExit) as caught:
      console.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_real_process_is_the_real_command():
  code = "from gmem_jax.commands import console; console.main()"
  done = subprocess.run(
    [sys.executable, "-c", code, "train", "--config=nothing", "--workdir=x"],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.startswith("gmem_jax: --config=nothing: there is no such")
