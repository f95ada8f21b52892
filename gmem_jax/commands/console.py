"""The command `gmem_jax`: one name for all our programs.

It only finds the module: every command has its own flags and its own --help.
Imports no JAX.
"""

import difflib
import runpy
import sys
from typing import NamedTuple, NoReturn

import gmem_jax
from gmem_jax.files import errors


class Command(NamedTuple):
  """A command.

  Attributes:
    module: What `python -m` runs.
    arguments: What comes before the user's.
    help: What it does.
  """

  module: str
  arguments: tuple[str, ...]
  help: str


COMMANDS = {
  **{
    mode: Command("gmem_jax.main", (f"--mode={mode}",), text)
    for mode, text in {
      "train": "train a run, or continue it: --config=digits --workdir=RUN",
      "sample": "make images from a run or from converted weights",
      "evaluate": "score a run; or `evaluate score`: a folder of images",
      "prepare": "turn images into what training reads, and a bank",
      "prior": "train a prior on the rows of a bank, to sample without it",
      "compile": "does a config fit a machine that is not here?",
    }.items()
  },
  "studio": Command("gmem_jax.studio", (), "a page to play with a bank"),
  "bank": Command("gmem_jax.bank", (), "build, search and edit banks"),
  "convert": Command("gmem_jax.convert", (), "convert published weights"),
  "fetch": Command(
    "gmem_jax.convert", ("fetch",), "bring all that the published samples need"
  ),
  "push": Command(
    "gmem_jax.convert", ("push",), "take weights, a bank or a run to the hub"
  ),
  "bench": Command("gmem_jax.bench", (), "measure speed"),
}


def main() -> None:
  """Runs the command that the first argument names; never returns."""
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name in COMMANDS:
    _run(COMMANDS[name])
  if name == "--version":
    print(version())
  elif name in ("-h", "--help"):
    print(usage())
  elif not name:
    errors.say(usage(), sys.stderr)
    sys.exit(errors.BAD_INPUT)
  else:
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else "see gmem_jax --help"
    sys.exit(errors.fail(f"{name}: there is no such command; {hint}"))
  sys.exit(0)


def _run(command: Command) -> NoReturn:
  """Does what `python -m` would."""
  module, arguments = command.module, command.arguments
  # Of files alone, `python -m gmem_jax.evaluate` has commands of its own.
  words = [word for word in sys.argv[2:3] if not word.startswith("-")]
  if sys.argv[1] == "evaluate" and words:
    module, arguments = "gmem_jax.evaluate", ()
  sys.argv[1:2] = arguments
  runpy.run_module(module, run_name="__main__", alter_sys=True)
  sys.exit(0)


def usage() -> str:
  """What commands there are."""
  lines = [f"  {name:10}{each.help}" for name, each in COMMANDS.items()]
  return "\n".join(
    (
      "usage: gmem_jax COMMAND …, gmem_jax COMMAND --help, gmem_jax --version",
      "",
      *lines,
    )
  )


def version() -> str:
  """Versions, and the devices that JAX finds."""
  from gmem_jax.commands import startup

  startup.skip_libtpu()
  import jax

  kinds = [device.device_kind for device in jax.devices()]
  devices = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
  return (
    f"gmem_jax {gmem_jax.__version__}, jax {jax.__version__},"
    f" {jax.default_backend()}: {', '.join(devices)}"
  )
