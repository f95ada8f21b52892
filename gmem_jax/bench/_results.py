"""Keeps a benchmark's table in RESULTS.md."""

import argparse
import datetime
import os
import pathlib
import platform
import re
import textwrap

import jax

from gmem_jax.files import atomic, errors

PATH = pathlib.Path(__file__).with_name("RESULTS.md")
# What in the environment changes times: XLA's flags, and glibc's huge pages.
_TOLD = ("XLA_FLAGS", "GLIBC_TUNABLES")


def add_argument(parser: argparse.ArgumentParser) -> None:
  """Adds what makes a benchmark write its table."""
  parser.add_argument(
    "--results",
    type=errors.path,
    nargs="?",
    const=PATH,
    help="also write the table to this file, in place of an older one of the"
    f" same benchmark; by default to {PATH.name} beside the benchmarks",
  )


def machine(**versions: str) -> str:
  """The machine, what runs on it and how it is set, in words."""
  device = jax.devices()[0].device_kind
  cores = len(os.sched_getaffinity(0))
  if jax.default_backend() == "cpu":
    # jax only says "cpu".
    device = _processor()
  named = {"Python": platform.python_version(), "jax": jax.__version__}
  named |= versions
  told = [f"{name} {version}" for name, version in named.items()]
  told += [f"{name}={os.environ[name]}" for name in _TOLD if name in os.environ]
  return f"{device}, {cores} cores; {', '.join(told)}"


def _processor() -> str:
  """The name of the CPU."""
  path = pathlib.Path("/proc/cpuinfo")
  found = None
  if path.exists():
    found = re.search(r"model name\s*: (.*)", path.read_text())
  return found[1].strip() if found else platform.machine()


def finish(args: argparse.Namespace, name: str, words: str, table: str) -> None:
  """Prints a benchmark's result, and writes it where that was asked for."""
  print(f"{words}\n\n{table}", flush=True)
  if args.results is None:
    return
  # Other benchmarks keep their sections in the same file.
  old = args.results.read_text() if args.results.exists() else "# Measured\n"
  atomic.write_text(args.results, replaced(old, name, words, table))


def replaced(text: str, name: str, words: str, table: str) -> str:
  """Puts a section in the place of an older one, or at the end."""
  today = datetime.date.today().isoformat()
  wrapped = "\n\n".join(
    textwrap.fill(part, 80, break_long_words=False, break_on_hyphens=False)
    for part in words.split("\n\n")
  )
  section = f"## {name}, {today}\n\n{wrapped}\n\n{table}\n"
  pattern = re.compile(
    rf"^## {re.escape(name)}, .*?(?=^## |\Z)", re.MULTILINE | re.DOTALL
  )
  if pattern.search(text):
    # A function: backslashes in the section are no references to groups.
    text = pattern.sub(lambda _: section + "\n", text, count=1)
  else:
    text = text.rstrip() + "\n\n" + section
  return text.rstrip() + "\n"
