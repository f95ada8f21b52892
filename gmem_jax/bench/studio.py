"""Seconds until the studio can be used, shows a bank, and begins to sample.

Starts the real command with the weights in the package and a synthetic bank of
each size, then visits it with a headless Chromium (playwright; without them
only the start is timed):

  answers     from the command to the first answer
  usable      from the command to a page whose controls work
  thumbnails  from the click on the tab Bank to its pictures, painted
  preview     from the click on Make to the first unfinished images, once all is
              compiled

Each start but the first finds its programs compiled; the first is not counted.
The bank is random, as wide as that of the weights, with their pictures.
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmem_jax.bank import (
  bank as bank_lib,
  files as bank_files,
  images as images_lib,
  storage,
)
from gmem_jax.bench import _results, _timing
from gmem_jax.config import resolve
from gmem_jax.files import errors

NETWORK = "emoji"
SIZES = (2_000, 1_281_167)
# Seconds at most: for any bank, or by its size.
GOALS = {"usable": 10.0, "preview": 1.0}
PAGE_GOALS = {SIZES[0]: 1.0, SIZES[1]: 3.0}
_PATIENCE = 600
_POLL = 0.01

# Clicks, and resolves to the seconds until a condition holds in a painted page.
_CLICK_UNTIL = """(button) => new Promise((done) => {
  const begun = performance.now();
  document.querySelector(button).click();
  const look = () => (%s) ? done((performance.now() - begun) / 1000)
    : requestAnimationFrame(look);
  requestAnimationFrame(look);
})"""
_THUMBNAILS = """(() => {
  const all = [...document.querySelectorAll("#bank-thumbnails img")];
  return all.length > 0 && all.every((each) => each.naturalWidth);
})()"""
_PREVIEW = """[...document.querySelectorAll("#make-images img")].some(
  (each) => each.alt.endsWith("unfinished"))"""


def synthetic_bank(path: pathlib.Path, size: int) -> None:
  """Writes a bank of random rows that the network takes, with its pictures."""
  config = resolve.get_config(f"{NETWORK}:pretrained")
  own = bank_files.read(config.sample.bank)
  random = np.random.default_rng(0)
  rows = random.standard_normal((size, own.info.width), np.float32)
  # As published banks are stored in the least memory.
  bank = storage.encode(rows, "int8")
  info = bank_lib.make_info(
    bank, encoder=own.info.encoder, source=own.info.source
  )
  assert own.images is not None
  names = own.images.names
  images = images_lib.SourceImages(
    own.images.folder, tuple(names[row % len(names)] for row in range(size))
  )
  bank_files.write(path, bank_files.Stored(bank, info, images))


@contextlib.contextmanager
def serving(bank: pathlib.Path) -> Iterator[tuple[str, float, float]]:
  """A studio with a bank: (address, seconds to its first answer, its start).

  Raises:
    RuntimeError: If it ends before it answers, with what it said.
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [
    sys.executable, "-m", "gmem_jax.studio", f"--workdir={NETWORK}",
    f"--port={port}", f"--change=sample.bank={bank}",
  ]  # fmt: skip
  url = f"http://127.0.0.1:{port}/"
  with tempfile.TemporaryFile("w+") as log:
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
      while not _answers(url):
        late = time.monotonic() - begun > _PATIENCE
        if process.poll() is not None or late:
          log.seek(0)
          raise RuntimeError(f"no page: {log.read()[-2000:]}")
        time.sleep(_POLL)
      yield url, time.monotonic() - begun, begun
    finally:
      process.terminate()
      process.wait()


def _answers(url: str) -> bool:
  try:
    with urllib.request.urlopen(url, timeout=5) as answer:
      return answer.status == 200
  except (urllib.error.URLError, OSError):
    return False


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
  """A headless browser, or None where there is none."""
  path = shutil.which("chromium") or shutil.which("chromium-browser")
  if path is None or importlib.util.find_spec("playwright") is None:
    yield None
    return
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path)
    yield browser
    browser.close()


def visit(browser: Any, url: str, begun: float) -> dict[str, float]:
  """A visitor's seconds, by name; the studio was started at `begun`."""
  context = browser.new_context()
  page = context.new_page()
  page.set_default_timeout(_PATIENCE * 1000)
  page.goto(url)
  page.wait_for_function("window.gmemReady")
  found = {"usable": time.monotonic() - begun}
  found["thumbnails"] = page.evaluate(
    _CLICK_UNTIL % _THUMBNAILS, "[role=tab]:nth-child(2)"
  )
  page.evaluate("document.querySelector('[role=tab]').click()")
  # The first click compiles, or loads what was compiled.
  for _ in range(2):
    found["preview"] = page.evaluate(_CLICK_UNTIL % _PREVIEW, "#make-start")
    page.locator("#make-zip").wait_for()
  context.close()
  return found


def measure(browser: Any, size: int, repeats: int) -> dict[str, float]:
  """Medians of the seconds with a bank of so many rows, by name."""
  found: dict[str, list[float]] = {}
  with tempfile.TemporaryDirectory(prefix="gmem_jax_studio_") as name:
    bank = pathlib.Path(name) / "bank"
    synthetic_bank(bank, size)
    for turn in range(repeats + 1):
      with serving(bank) as (url, answers, begun):
        seconds = {"answers": answers}
        if browser is not None:
          seconds |= visit(browser, url, begun)
      if turn:
        for key, value in seconds.items():
          found.setdefault(key, []).append(value)
  return {key: statistics.median(values) for key, values in found.items()}


def missed(size: int, seconds: dict[str, float]) -> list[str]:
  """The goals that were missed with a bank of so many rows, in words."""
  goals = dict(GOALS)
  # A large bank is read and checked at the start, which has no goal.
  if size > SIZES[0]:
    del goals["usable"]
  if size in PAGE_GOALS:
    goals["thumbnails"] = PAGE_GOALS[size]
  return [
    f"{size:,} rows: {key} took {seconds[key]:.2f} s, the goal is {goal:.0f} s"
    for key, goal in goals.items()
    if seconds.get(key, 0) > goal
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Starts and visits studios, and prints the table.

  Returns:
    0, or 1 where a goal was missed.
  """
  parser = errors.Parser(
    prog="python -m gmem_jax.bench studio",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="example: python -m gmem_jax.bench studio --rows=2000 --results",
  )
  default = ",".join(map(str, SIZES))
  parser.add_argument(
    "--rows", default=default, help="sizes of banks (default: %(default)s)"
  )
  parser.add_argument(
    "--repeats", type=int, default=3, help="medians of so many (default: 3)"
  )
  _results.add_argument(parser)
  args = parser.parse_args(argv)
  sizes = args.rows.split(",")
  if not all(size.isdecimal() and int(size) for size in sizes):
    parser.error(f"--rows={args.rows}: numbers above 0, with commas between")
  if args.repeats < 1:
    parser.error(f"--repeats={args.repeats}: must be positive")
  with chromium() as browser:
    table = {
      int(size): measure(browser, int(size), args.repeats) for size in sizes
    }
  load = os.getloadavg()[0]
  words = (
    f"`python -m gmem_jax.bench studio`: the weights {NETWORK!r}, synthetic"
    f" int8 banks with their pictures. {_results.machine()}. Medians of"
    f" {args.repeats}, load {load:.1f} at the end. Goals: usable in"
    f" {GOALS['usable']:.0f} s, a preview in {GOALS['preview']:.0f} s,"
    f" thumbnails of {SIZES[0]:,} rows in {PAGE_GOALS[SIZES[0]]:.0f} s and of"
    f" {SIZES[1]:,} in {PAGE_GOALS[SIZES[1]]:.0f} s."
  )
  if browser is None:
    words += " Without Chromium and playwright only the start is timed."
  head = ["rows", "answers, s", "usable, s", "thumbnails, s", "preview, s"]
  keys = "answers", "usable", "thumbnails", "preview"
  rows = [
    [f"{size:,}", *(f"{found[k]:.2f}" if k in found else "" for k in keys)]
    for size, found in table.items()
  ]
  _results.finish(args, "studio", words, _timing.markdown(head, rows))
  late = [line for size, found in table.items() for line in missed(size, found)]
  for line in late:
    print(line)
  return int(bool(late))
