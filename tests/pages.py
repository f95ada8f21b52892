"""The fenced blocks of README and of the pages, and how they are typed.

A block is typed as it stands, unless a comment of its page, right above it,
says otherwise:

  <!-- not run: REASON -->   It is not run; its commands are parsed.
  <!-- installs -->          It is run, but for what it installs.

Other comments there, as <!-- command: digits -->, give it a name.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from gmem_jax.config import recipe, resolve
from tests import layout
from tests.launch import fakes

_BLOCK = re.compile(
  r"((?:^<!-- [^\n]* -->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = "not run: "
_INSTALLS = "installs"
# Modules whose command line is elsewhere.
_ENTRIES = {"gmem_jax.bank": "gmem_jax.commands.bank"}
# Programs of pages that are not ours.
_FOREIGN = (
  "pip", "pre-commit", "pyright", "python3", "ruff", "tensorboard",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block.

  Attributes:
    page: Its file, relative to the repository.
    number: Its place among those of the page, from 1.
    language: What is written after the fence.
    text: Its lines.
    marks: The comments right above it.
  """

  page: str
  number: int
  language: str
  text: str
  marks: tuple[str, ...]

  @property
  def reason(self) -> str:
    """Why it is not run; "" if it is."""
    found = [m for m in self.marks if m.startswith(_NOT_RUN)]
    return found[0].removeprefix(_NOT_RUN) if found else ""

  @property
  def installs(self) -> bool:
    """Whether some of its commands install."""
    return _INSTALLS in self.marks

  def commands(self) -> list[str]:
    """Its commands, each in one line."""
    lines = self.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and line[0] != "#"]

  def __str__(self) -> str:
    return f"{self.page}, block {self.number}"


def files() -> list[pathlib.Path]:
  """README first: the pages build on its runs."""
  docs = sorted((layout.ROOT / "docs").glob("*.md"))
  return [layout.ROOT / "README.md", *docs, layout.ROOT / "CONTRIBUTING.md"]


def blocks(page: pathlib.Path) -> list[Block]:
  """The fenced blocks of a page, in order."""
  name = str(page.relative_to(layout.ROOT))
  return [
    Block(
      name,
      number,
      language,
      text,
      tuple(re.findall(r"<!-- (.*) -->", comments)),
    )
    for number, (comments, language, text) in enumerate(
      _BLOCK.findall(page.read_text()), 1
    )
  ]


def copy_tree(directory: pathlib.Path) -> None:
  """Copies what a fresh clone would have, as it is in the working tree."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
    cwd=layout.ROOT,
    capture_output=True,
    check=True,
  )
  for name in os.fsdecode(listed.stdout).split("\0"):
    # No page reads the tests; a file that is deleted is still in the index.
    path = layout.ROOT / name
    if (path.is_symlink() or path.is_file()) and not name.startswith("tests/"):
      (directory / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(path, directory / name, follow_symlinks=False)


class Typist:
  """Types blocks into a fresh copy of the repository."""

  def __init__(self, directory: pathlib.Path, *, optimised: bool = False):
    """Makes the copy.

    `optimised`: XLA compiles as for users, not as fast as it can: what is small
    starts later, what is large runs several times faster.
    """
    self._flags = {"XLA_FLAGS": ""} if optimised else {}
    self.tree = directory / "gmem_jax"
    copy_tree(self.tree)
    self._fakes = fakes.Fakes(directory, (*fakes.PROGRAMS, *_FOREIGN))
    # What a virtual environment would have.
    tools = self.tree / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "activate").touch()
    shutil.copy(self._fakes.bin / "pip", tools / "pip")
    self._python, self._install = directory / "python", directory / "install"
    self._python.mkdir()
    self._install.mkdir()
    # No link: outside of its environment Python would not find the packages.
    python = self._python / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for program in ("pip", "python3"):
      shutil.copy(self._fakes.bin / program, self._install / program)

  def run(self, block: Block, left_out: Sequence[str] = ()) -> None:
    """Types a block of commands, but for those in which such a text is.

    Raises:
      AssertionError: If one fails, with what it said.
    """
    text = block.text
    if left_out:
      kept = [c for c in block.commands() if not any(t in c for t in left_out)]
      text = "\n".join(kept)
    path = [str(self._python), os.environ["PATH"]]
    if block.installs:
      self._fakes.environment()  # Ready to note calls.
      path.insert(0, str(self._install))
    environment = os.environ | {"PATH": os.pathsep.join(path)}
    self._finish(["bash", "-euo", "pipefail", "-c", text], block, environment)

  def run_python(self, page: Sequence[Block]) -> None:
    """Runs blocks of Python that follow each other as one program."""
    text = "\n".join(block.text for block in page)
    self._finish([sys.executable, "-c", text], page[-1], dict(os.environ))

  def _finish(
    self, command: list[str], block: Block, environment: dict[str, str]
  ) -> None:
    environment |= self._flags
    environment["PYTHONPATH"] = os.pathsep.join(
      [str(self.tree), environment.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
      command,
      cwd=self.tree,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, (
      f"{block} ended with {done.returncode}:\n{block.text}\n{done.stdout}\n"
      f"{done.stderr}"
    )

  def pretend(self, block: Block) -> list[list[str]]:
    """Types a block where every program only notes how it is called.

    Launchers print their commands and run none.

    Returns:
      The arguments of `python`, for each call.
    """
    environment = self._fakes.environment(GMEM_DRY_RUN="1")
    done = subprocess.run(
      ["bash", "-euo", "pipefail", "-c", block.text],
      cwd=self.tree,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, f"{block}:\n{done.stdout}\n{done.stderr}"
    found = [c[1:] for c in self._fakes.calls() if c[0] == "python"]
    for command in block.commands():
      words = shlex.split(command, comments=True)
      if words and words[0].startswith("launch/") and "--" in words:
        main = words[words.index("--") + 1 :]
        found.append(["-m", "gmem_jax.main", *main])
    return found


def runs(of: Sequence[Block]) -> Iterator[tuple[str, list[Block]]]:
  """(language, blocks) of blocks that follow each other and are to be run."""
  run = [block for block in of if not block.reason]
  for language, group in itertools.groupby(run, lambda b: b.language):
    yield language, list(group)


def parse(arguments: Sequence[str]) -> None:
  """Parses the arguments of `python` as our command would, and runs nothing.

  Raises:
    AssertionError: If the module, a flag, its value or a config key is not
      known.
  """
  dash, module, *rest = arguments
  assert dash == "-m"
  if module == "gmem_jax.main":
    _parse_main(rest)
  elif module.startswith("gmem_jax"):
    _parse_program(module, rest)


class _Started(BaseException):
  """Ends a program where it begins to parse."""


def parser_of(module: str) -> argparse.ArgumentParser:
  """The parser of a program that parses by argparse before all else.

  Args:
    module: As in `python -m`; of a benchmark gmem_jax.bench.NAME.
  """
  found = []

  def stop(self, args=None, namespace=None):
    found.append(self)
    raise _Started

  name = _ENTRIES.get(module, module)
  if (layout.ROOT / name.replace(".", "/") / "__main__.py").exists():
    name += ".__main__"
  main = importlib.import_module(name).main
  with (
    mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
    contextlib.suppress(_Started),
  ):
    main(*([[]] if inspect.signature(main).parameters else []))
  assert found, f"{module} does other things before it parses"
  return found[0]


def _parse_program(module: str, arguments: Sequence[str]) -> None:
  words = list(arguments)
  if module == "gmem_jax.bench" and words:
    module = f"{module}.{words.pop(0)}"
  if module == "gmem_jax.convert" and words[:1] in (["fetch"], ["push"]):
    module = f"gmem_jax.commands.{words.pop(0)}"

  def fail(self, message):
    raise AssertionError(f"{module} {' '.join(words)}: {message}")

  parser = parser_of(module)
  with (
    mock.patch.object(type(parser), "error", fail),
    contextlib.redirect_stdout(io.StringIO()),
  ):
    try:
      args = vars(parser.parse_args(words))
    except SystemExit:  # --help
      return
  if args.get("config"):
    changes = dict(c.split("=", 1) for c in args.get("change") or ())
    _check_config(args["config"], changes)


@functools.cache
def main_flags() -> dict[str, Any]:
  """The flags of `gmem_jax.main` by name, but for --config."""
  from absl import flags

  import gmem_jax.main  # noqa: F401  # Defines the flags.

  known = flags.FLAGS.flags_by_module_dict()["gmem_jax.main"]
  return {flag.name: flag for flag in known}


def _parse_main(arguments: Sequence[str]) -> None:
  config, changes = "", {}
  for argument in arguments:
    name, _, value = argument.removeprefix("--").partition("=")
    if name == "config":
      config = value
    elif name.startswith("config."):
      changes[name.removeprefix("config.")] = value
    else:
      assert name in main_flags(), f"gmem_jax.main has no flag --{name}"
      main_flags()[name].parser.parse(value)
  _check_config(config, changes)


def _check_config(config: str, changes: dict[str, str]) -> None:
  """Resolves a config with changes, given as text."""
  path, _, option = config.partition(":")
  file = path if path in recipe.names() else layout.ROOT / path
  tree = recipe.load(f"{file}:{option}")
  for key, text in changes.items():
    assert key in resolve.flatten(tree.to_dict()), f"{config} has no key {key}"
    recipe.set_key(tree, f"{key}={text}")
  resolve.resolve(tree)
