"""Reads a recipe: a file of Python whose `get_config` returns the config.

Imports no JAX, so that the command line can refuse a wrong name at once.
"""

import ast
import difflib
import importlib.machinery
import importlib.util
import pathlib
import traceback
from typing import Any

import ml_collections

# Recipes that are found by name, from wherever a command is started. In a
# checkout this is a link to its configs/.
OURS = (pathlib.Path(__file__).parents[1] / "configs").resolve()


def names() -> list[str]:
  """Names of the recipes that come with the package."""
  return sorted(path.stem for path in OURS.glob("*.py"))


def load(text: str) -> ml_collections.ConfigDict:
  """Reads a recipe as `--config` does.

  Args:
    text: NAME of a recipe that comes with the package, or FILE.py; with :OPTION
      after it, an option of the recipe.

  Raises:
    ValueError: If there is no such file, it does not run, it refuses the option
      or it returns no config.
  """
  name, _, option = text.partition(":")
  path = pathlib.Path(name).expanduser()
  if name in names() and not path.is_file():
    path = OURS / f"{name}.py"
  if not name or not path.is_file():
    raise ValueError(f"--config={text}: {_missing(path)}")
  try:
    tree = _run(path, option)
  # A recipe is a program and can raise anything; all of it is the user's to
  # mend, and a line that says where is worth more than our stack.
  except (Exception, SystemExit) as error:
    raise ValueError(f"--config={text}: {_reason(error, path)}") from None
  if not isinstance(tree, ml_collections.ConfigDict):
    raise ValueError(
      f"--config={text}: get_config() must return a ConfigDict, not"
      f" {type(tree).__name__}"
    )
  return tree


def _run(path: pathlib.Path, option: str) -> object:
  """What the recipe's `get_config` returns."""
  # Not by suffix: a file of another kind then says what Python says of it.
  loader = importlib.machinery.SourceFileLoader("recipe", str(path))
  spec = importlib.util.spec_from_loader("recipe", loader)
  assert spec is not None
  module = importlib.util.module_from_spec(spec)
  loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ValueError("it defines no get_config()")
  return module.get_config(option) if option else module.get_config()


def _reason(error: BaseException, path: pathlib.Path) -> str:
  """Why a recipe does not run, in one line, with the line of the file."""
  message = error.msg if isinstance(error, SyntaxError) else str(error)
  message = " ".join(message.split())
  # A recipe refuses an option by a ValueError, which says all by itself.
  if not isinstance(error, ValueError):
    message = f"{type(error).__name__}: {message}"
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  if isinstance(error, SyntaxError) and error.filename == str(path):
    lines.append(error.lineno)
  return f"{message} ({path}, line {lines[-1]})" if lines else message


def _missing(path: pathlib.Path) -> str:
  """Why a recipe is not found, and which may be meant."""
  if path.is_dir():
    message = "a file is needed, not a directory"
  elif path.is_absolute():
    message = "there is no such file"
  else:
    # The path may be right and the directory wrong.
    message = f"there is no such file in {pathlib.Path.cwd()}"
  found = {p.name: p for p in (*OURS.glob("*.py"), *path.parent.glob("*.py"))}
  found |= {name: name for name in names()}
  near = difflib.get_close_matches(path.name, found, n=1)
  if near:
    return f"{message}; did you mean {found[near[0]]}?"
  if path.is_dir() or path.name != str(path) or path.suffix:
    return message
  return f"{message}; by name there are {', '.join(names())}"


def set_key(tree: ml_collections.ConfigDict, change: str) -> None:
  """Sets one key of a config as the command line does.

  Args:
    tree: Changed in place.
    change: KEY=VALUE, e.g. "train.steps=2000".

  Raises:
    ValueError: If it is not of that form, or there is no such key.
  """
  key, value = parse_change(change)
  check_key(tree, key)
  if isinstance(flat(tree).get(key), str):
    value = change.partition("=")[2]  # A path may look like a number.
  with tree.ignore_type():
    tree.update_from_flattened_dict({key: value})


def parse_change(change: str) -> tuple[str, Any]:
  """Splits KEY=VALUE; what is no value of Python's is a word.

  Raises:
    ValueError: If there is no "=".
  """
  key, equals, text = change.partition("=")
  if not equals:
    raise ValueError(f"{change!r}: KEY=VALUE is expected")
  try:
    return key, ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return key, {"true": True, "false": False}.get(text, text)


def check_key(tree: ml_collections.ConfigDict, key: str) -> None:
  """Refuses a dotted key that the config does not have.

  Raises:
    ValueError: Saying which may be meant.
  """
  leaves = list(flat(tree))
  known = {*leaves, *(leaf.rpartition(".")[0] for leaf in leaves)}
  if key in known:
    return
  # The right name in a wrong section, or in none, is as likely as a typo.
  last = {leaf.rpartition(".")[2] for leaf in leaves}
  name = difflib.get_close_matches(key.rpartition(".")[2], last, 1, 0.75)
  same = [leaf for leaf in leaves if leaf.rpartition(".")[2] in name]
  near = (
    difflib.get_close_matches(key, same, 1, 0.8)
    or same[:3]
    or difflib.get_close_matches(key, known, 1)
  )
  hint = "gmem_jax/config/sections.py has all keys"
  if near:
    hint = f"did you mean {' or '.join(f'--config.{n}' for n in near)}?"
  raise ValueError(f"--config.{key}: there is no such key; {hint}")


def flat(tree: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
  """Dotted keys and their values."""
  found: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, ml_collections.ConfigDict):
      found |= flat(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = value
  return found
