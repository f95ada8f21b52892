"""Progress of anything long: one line with rate and ETA, or with a phase."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import tqdm

_log = logging.getLogger(__name__)

# Seconds after which a log file that nobody reported to gets a line.
SILENCE = 20.0


class Progress:
  """One line on a terminal; off it log lines, by `report` or after silence."""

  def __init__(self, name: str, first: int, total: int, unit: str = "step"):
    """Starts the line at `first` of `total` units; `name` says what is done."""
    self._name, self._unit = name, unit
    # A log file has no line to redraw, and one process is enough to watch.
    self._terminal = sys.stderr.isatty() and jax.process_index() == 0
    self._bar = tqdm.tqdm(
      initial=first,
      total=total,
      desc=name,
      unit=unit,
      unit_scale=unit == "B",
      dynamic_ncols=True,
      disable=None if self._terminal else True,
    )
    self._done, self._total = first, total
    # The last log line: when, and of which unit. None before the first units,
    # which may have taken a compilation: they foretell nothing.
    self._logged: tuple[float, int] | None = None

  def update(self, done: int) -> None:
    """Moves the line to `done` units."""
    self._bar.update(done - self._done)
    self._done, now = done, time.monotonic()
    then, before = self._logged or (now, done)
    self._logged = then, before
    if not self._terminal and now - then >= SILENCE:
      self.report(done, (done - before) / (now - then), {})

  def advance(self, units: int) -> None:
    """Moves the line by `units`."""
    self.update(self._done + units)

  def report(
    self, done: int, per_second: float, scalars: Mapping[str, float]
  ) -> None:
    """Shows numbers of unit `done`, which the line may have passed."""
    # One line has room for the last part of a name only.
    shown = {k.split("/")[-1]: f"{v:.4g}" for k, v in scalars.items()}
    if self._terminal:
      self._bar.set_postfix(shown)
      return
    self._logged = time.monotonic(), done
    # From the last interval alone: the first steps include the compilation.
    eta = (self._total - done) / max(per_second, 1e-9)
    if self._unit == "B":
      size = tqdm.tqdm.format_sizeof
      amount = f"{size(done)}/{size(self._total)} B  {size(per_second)} B/s"
    else:
      amount = (
        f"{done}/{self._total} {self._unit}s  {per_second:.1f} {self._unit}s/s"
      )
    _log.info(
      "%s %s  ETA %s  %s",
      self._name,
      amount,
      tqdm.tqdm.format_interval(eta),
      "  ".join(f"{k} {v}" for k, v in shown.items()),
    )

  def close(self) -> None:
    """Ends the line."""
    self._bar.close()


@contextlib.contextmanager
def phases(name: str) -> Iterator[Callable[[str], None]]:
  """Shows the phases of work of which no part can be counted, and the time.

  One line that ticks on a terminal; off it, a log line as each phase begins.

  Args:
    name: The work, e.g. "training step".

  Yields:
    A function that says which phase begins, e.g. "compiling".
  """
  began, ended = time.monotonic(), threading.Event()
  terminal = sys.stderr.isatty()
  line = tqdm.tqdm(
    desc=name,
    bar_format="{desc}  {elapsed}",
    dynamic_ncols=True,
    disable=not terminal,
  )

  def tick() -> None:
    # The compiler holds the main thread for minutes, but not Python's lock.
    while not ended.wait(1):
      line.refresh()

  def begin(phase: str) -> None:
    line.set_description_str(f"{name}: {phase}")
    if not terminal:
      passed = tqdm.tqdm.format_interval(time.monotonic() - began)
      _log.info("%s: %s, %s so far", name, phase, passed)

  ticking = threading.Thread(target=tick, daemon=True)
  ticking.start()
  try:
    yield begin
  finally:
    ended.set()
    ticking.join()
    line.close()
