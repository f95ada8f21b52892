"""What messages, docstrings and pages name exists: keys, flags, commands.

An error that names a key or a command that is not there sends people into the
void. Read are all texts of the package, the recipes and the pages.
"""

import argparse
import ast
import dataclasses
import functools
import pkgutil
import re
import shlex

import pytest

from gmem_jax import bench
from gmem_jax.config import sections
from tests import layout, pages

# Of other programs that pages and messages tell to call.
FOREIGN = {
  "enable-hierarchical-namespace", "location", "recursive",
  "uniform-bucket-level-access",  # gcloud
  "no-deps", "logdir",  # pip, tensorboard
  "helpfull", "helpshort", "verbosity",  # absl
  "case", "cases",  # tests.fuzz
  "xla_force_host_platform_device_count",
}  # fmt: skip
# Ends of file names that look like keys.
NO_KEYS = {"json", "md", "npz", "pkl", "pt", "pth", "py", "txt"}
# What stands for a program in the pages' tables.
SHORT = {"main": "gmem_jax.main", "…": "gmem_jax.main", "bank": "gmem_jax.bank"}
PROGRAMS = (
  "gmem_jax.bank", "gmem_jax.commands.export", "gmem_jax.commands.fetch",
  "gmem_jax.commands.push", "gmem_jax.convert", "gmem_jax.data.emoji",
  "gmem_jax.evaluate", "gmem_jax.studio",
  *(
    f"gmem_jax.bench.{module.name}"
    for module in pkgutil.iter_modules(bench.__path__)
    if not module.name.startswith("_")
  ),
)  # fmt: skip


def _literals(path) -> str:
  """The strings of a file of Python; what is filled in is {}."""
  found, inside = [], set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.JoinedStr):
      inside |= {id(value) for value in node.values}
      parts = [getattr(value, "value", "{}") for value in node.values]
      found.append("".join(p if isinstance(p, str) else "{}" for p in parts))
    elif isinstance(getattr(node, "value", 0), str) and id(node) not in inside:
      found.append(node.value)
  return "\n\n".join(found)


@functools.cache
def texts() -> dict[str, str]:
  """File -> what it says."""
  root = layout.ROOT
  python = [*layout.FILES, *sorted((root / "configs").glob("*.py"))]
  found = {str(p.relative_to(root)): _literals(p) for p in python}
  written = [*pages.files(), root / "gmem_jax" / "bench" / "RESULTS.md"]
  return found | {str(p.relative_to(root)): p.read_text() for p in written}


@functools.cache
def keys() -> frozenset[str]:
  """Dotted names of all keys and sections of a config."""

  def of(cls, prefix):
    for field in dataclasses.fields(cls):
      yield prefix + field.name
      if dataclasses.is_dataclass(field.type):
        yield from of(field.type, f"{prefix}{field.name}.")

  return frozenset(of(sections.Config, ""))


def unknown_keys(text: str) -> list[str]:
  """Names in a text that look like keys of the config and are none."""
  found = []
  for name in re.findall(r"(?<![\w./])config((?:\.[a-z_0-9]+)+)", text):
    parts = name[1:].split(".")
    module = layout.PACKAGE / "config" / f"{parts[0]}.py"
    known = name[1:] in keys() or parts[0] in NO_KEYS or module.exists()
    if not known:
      found.append(f"config{name}")
  names = "|".join(sorted(key for key in keys() if "." not in key))
  pattern = rf"(?<![\w./-])((?:{names})(?:\.[a-z_0-9]+)+)(?![\w(])"
  for name in re.findall(pattern, text):
    head, *rest = name.split(".")
    path = layout.PACKAGE.joinpath(head, rest[0])
    if name in keys() or rest[-1] in NO_KEYS or path.is_dir():
      continue
    if not path.with_suffix(".py").exists():
      found.append(name)
  return found


@functools.cache
def options() -> frozenset[str]:
  """The flags of all programs and launchers, without dashes."""
  found = {"config", "help", "version", *FOREIGN, *pages.main_flags()}
  for program in PROGRAMS:
    for parser in _parsers(pages.parser_of(program)):
      found |= {name.lstrip("-") for name in parser._option_string_actions}
  for launcher in (layout.ROOT / "launch").glob("*.sh"):
    usage = re.findall(r"^#.*", launcher.read_text(), re.MULTILINE)
    found |= set(re.findall(r"--([a-z-]+)", "\n".join(usage)))
  return frozenset(found)


def _parsers(parser):
  yield parser
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for each in action.choices.values():
        yield from _parsers(each)


def unknown_flags(text: str) -> list[str]:
  """Flags in a text that no program has."""
  found = re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)
  modes = re.findall(r"--mode=([a-z]+)", text)
  known = pages.main_flags()["mode"].parser.enum_values
  return [
    *(f"--{name}" for name in found if name.rstrip("-") not in options()),
    *(f"--mode={mode}" for mode in modes if mode not in known),
  ]


def commands(text: str) -> list[str]:
  """The command lines in a text, as far as they are written out."""
  text = text.replace("\\\n", " ")
  line = r"^ *(python -m gmem_jax[\w.]*(?: .*)?)$"
  found = re.findall(line, text, re.MULTILINE)
  prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
  for code in re.findall(r"`([^`]+)`", prose):
    head, _, rest = code.partition(" ")
    if head in SHORT and rest:
      found.append(f"python -m {SHORT[head]} {rest}")
    elif code.startswith("python -m gmem_jax"):
      found.append(code)
  return [command for command in found if "{" not in command]


def check_command(command: str) -> None:
  """Raises AssertionError or ValueError where a command would be refused."""
  words = shlex.split(command, comments=True)[1:]
  words = [w.strip(";.,") for w in words if w not in ("...", "…", "..")]
  module = words[1]
  assert (
    layout.ROOT.joinpath(*module.split(".")).with_suffix(".py").exists()
    or layout.ROOT.joinpath(*module.split("."), "__main__.py").exists()
  ), module
  # Without arguments, or with one that stands for a command.
  if len(words) == 2 or words[2] in ("NAME", "COMMAND"):
    return
  words = [w.replace("=CONFIG", "=configs/digits.py") for w in words]
  if module == "gmem_jax.main" and "--config=" not in command:
    words.append("--config=configs/digits.py")
  try:
    pages.parse(words)
  except AssertionError as error:
    # Only begun, as in `bank dedup --threshold=1.0`.
    if "arguments are required" not in str(error):
      raise


def test_keys_exist():
  wrong = {
    file: found
    for file, text in texts().items()
    # The converter is about names in files of others.
    if not file.startswith("gmem_jax/convert/")
    and (found := unknown_keys(text))
  }
  assert not wrong


def test_flags_and_modes_exist():
  wrong = {
    file: found
    for file, text in texts().items()
    if (found := unknown_flags(text))
  }
  assert not wrong


def test_commands_would_be_taken():
  wrong, seen = [], 0
  for file, text in texts().items():
    for command in commands(text):
      seen += 1
      try:
        check_command(command)
      except (AssertionError, ValueError) as error:
        wrong.append(f"{file}: {command}: {error}")
  assert not wrong, "\n".join(wrong)
  assert seen > 100


@pytest.mark.parametrize("program", PROGRAMS)
def test_examples_of_the_help_would_be_taken(program):
  seen = 0
  for parser in _parsers(pages.parser_of(program)):
    for command in commands(parser.format_help()):
      check_command(command)
      seen += 1
  assert seen or program.startswith("gmem_jax.bench"), "an example is missing"


# Arguments that are paths, by where argparse keeps them. --config is read by
# `config.recipe`.
FILES = {
  "against", "bank", "decode", "dinov2", "dir", "dst", "features", "folder",
  "font", "heldout", "image", "images", "inception", "out", "path", "pictures",
  "reference", "results", "run", "scores", "sheet", "src", "swap", "weights",
  "workdir",
}  # fmt: skip
# Names of scores, and of weights in a trainer's file; numbers. The paths of the
# studio, which may have a name before them, are expanded when they are opened.
NO_FILES = {
  ("gmem_jax.bench.data", "images"),
  ("gmem_jax.evaluate", "scores"), ("gmem_jax.convert", "weights"),
  ("gmem_jax.studio", "workdir"), ("gmem_jax.studio", "bank"),
  ("gmem_jax.studio", "against"),
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_paths_know_the_home(program, monkeypatch):
  """No shell expands the ~ of --out=~/x."""
  monkeypatch.setenv("HOME", "/home/me")
  for parser in _parsers(pages.parser_of(program)):
    for action in parser._actions:
      if action.dest in FILES and (program, action.dest) not in NO_FILES:
        found = str((action.type or str)("~/x"))
        assert found == "/home/me/x", f"{parser.prog}: {action.dest}"


def test_what_does_not_exist_is_noticed():
  assert unknown_keys("set config.data.image_size") == [
    "config.data.image_size",
  ]
  assert unknown_keys("`data.image_size`, sample.out.") == [
    "data.image_size", "sample.out",
  ]  # fmt: skip
  assert not unknown_keys("config.encoder.image_size; data.path, report.json")
  assert unknown_flags("give --weigths or --mode=discard") == [
    "--weigths", "--mode=discard",
  ]  # fmt: skip
  for wrong in ("`bank discard BANK`", "`python -m gmem_jax.bank discard X`"):
    (command,) = commands(wrong)
    with pytest.raises(AssertionError, match="discard"):
      check_command(command)
