"""Reads a recipe: a file of Python whose `get_config` returns the config.

Imports no JAX, so that the command line can refuse a wrong name at once.
"""

import difflib
import importlib.machinery
import importlib.util
import pathlib
import traceback

import ml_collections

# Where a checkout has its recipes, from wherever a command is started.
OURS = pathlib.Path(__file__).parents[2] / "configs"


def load(text: str) -> ml_collections.ConfigDict:
  """Reads a recipe as `--config` does.

  Args:
    text: FILE.py, or FILE.py:OPTION.

  Raises:
    ValueError: If there is no such file, it does not run, it refuses the option
      or it returns no config.
  """
  name, _, option = text.partition(":")
  path = pathlib.Path(name).expanduser()
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
  near = difflib.get_close_matches(path.name, found, n=1)
  return f"{message}; did you mean {found[near[0]]}?" if near else message
