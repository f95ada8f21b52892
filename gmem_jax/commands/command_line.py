"""Parses the flags of `gmem_jax.main`, and helps where they are wrong.

absl and ml_collections do the work. What they say of a mistake, and of
themselves when asked for help, is written for their own users, not for ours.
Imports no JAX.
"""

import re
import sys
import textwrap
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from gmem_jax.commands import startup
from gmem_jax.config import recipe
from gmem_jax.files import errors

# Its flag is one of the program's that calls `define_config`.
flags.disclaim_key_flags()

_HELP = {"-h", "-?", "--help", "--helpshort", "-help", "-helpshort"}
# Flags whose value is a path.
_PATHS = {"config", "workdir", "image", "interpolate", "bank"}
# What a key of the config takes.
_KINDS = {
  bool: "true or false",
  int: "an integer",
  float: "a number",
  tuple: "a tuple",
}
# What absl says of one; the value may hold anything.
_WRONG_VALUE = re.compile(r"flag --config\.([\w.]+)=(.*?): ", re.DOTALL)


class RecipeError(flags.Error):
  """A recipe that cannot be read, or a key that it does not have."""


def define_config(help_string: str) -> flags.FlagHolder:
  """Defines --config; any key is a flag, too: --config.KEY."""
  holder = config_flags.DEFINE_config_file("config", None, help_string)
  flags.FLAGS["config"].parser = _Recipe()
  return holder


class _Recipe(flags.ArgumentParser):
  """Reads the recipe as all programs of ours do."""

  def parse(self, path: str) -> ml_collections.ConfigDict:
    try:
      tree = recipe.load(path)
      # Here, as ml_collections takes a key that is not there for a fault.
      for argument in sys.argv[1:]:
        if given := re.match(r"--?(?:no)?config\.([^=]+)", argument):
          recipe.check_key(tree, given[1])
    except ValueError as error:
      # absl would put flag and value before the message once more.
      raise RecipeError(str(error)) from None
    for key, value in recipe.flat(tree).items():
      if value is None:
        # Without a type the key could not be set; all of these are numbers.
        number = config_dict.placeholder(float)
        tree.update_from_flattened_dict({key: number})
    return tree.lock()


def parse(argv: list[str], about: str) -> list[str]:
  """Parses the flags; returns what is left of the command line.

  What is wrong with one ends the process with a line and status 2: absl's own
  is 1, at which launchers start a command again.

  Args:
    argv: The command line, with the program.
    about: What the program is; help begins with it.
  """
  if not argv[1:] or _HELP & {*argv[1:]}:
    wanted = bool(argv[1:])
    errors.say(_help(about), sys.stdout if wanted else sys.stderr)
    sys.exit(0 if wanted else errors.BAD_INPUT)
  try:
    rest = flags.FLAGS([startup.expand_home(each, _PATHS) for each in argv])
    _check_paths()
    return rest
  except SystemExit:  # --helpfull, which absl ends with 1.
    sys.exit(0)
  except flags.Error as error:
    sys.exit(errors.fail(_explained(error)))


def _check_paths() -> None:
  """Refuses empty paths: variables of the shell that are not set.

  Elsewhere "" is the current directory, or as good as no flag.
  """

  def texts(value: Any) -> list[str]:
    if isinstance(value, list):
      return [text for part in value for text in texts(part)]
    return [value]

  for name in sorted(_PATHS - {"config"}):
    if "" in texts(flags.FLAGS[name].value):
      raise flags.Error(f"--{name} is empty")


def _explained(error: flags.Error) -> str:
  """What is wrong with a flag, in words of the config."""
  if isinstance(error, RecipeError):
    return str(error)
  name = getattr(error, "flagname", "")
  if name.startswith(("config.", "noconfig.")):  # No recipe, so no keys.
    return f"--config is needed for --{name}; see --help"
  if not (wrong := _WRONG_VALUE.match(str(error))):
    return f"{error}; see --help"
  key, value = wrong.groups()
  *sections, last = key.split(".")
  tree: Any = flags.FLAGS["config"].value
  for section in sections:
    tree = tree[section]
  default = tree[last]
  if isinstance(default, ml_collections.ConfigDict):
    return f"--config.{key}={value}: set its keys: {', '.join(default)}"
  kind = _KINDS[tree.get_type(last)]
  example = "" if default is None else f", such as {default}"
  return f"--config.{key}={value}: {kind} is expected{example}"


def _help(about: str) -> str:
  """What the program does, and its own flags: not absl's, nor each default."""
  wrapper = textwrap.TextWrapper(
    80, initial_indent="  ", subsequent_indent=" " * 21
  )
  lines = []
  program = flags.FLAGS.find_module_defining_flag("config")
  for flag in flags.FLAGS.get_key_flags_for_module(program):
    # absl adds a line of its own to flags that can be repeated.
    text = flag.help.partition(";\n")[0]
    lines += wrapper.wrap(f"{'--' + flag.name:19}{text}")
  end = "--helpfull adds the flags of the libraries, such as --verbosity."
  return "\n".join([about.strip(), "", "Flags:", *lines, "", end])
