"""Progress of anything long: one line with rate and ETA."""

import logging
import sys
from collections.abc import Mapping

import jax
from tqdm import auto as tqdm

_log = logging.getLogger(__name__)


class Progress:
  """One line on a terminal; off it, the log lines that `report` writes."""

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

  def update(self, done: int) -> None:
    """Moves the line to `done` units."""
    self._bar.update(done - self._done)
    self._done = done

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
    # From the last interval alone: the first steps include the compilation.
    eta = (self._total - done) / max(per_second, 1e-9)
    _log.info(
      "%s %d/%d %ss  %.1f %ss/s  ETA %s  %s",
      self._name,
      done,
      self._total,
      self._unit,
      per_second,
      self._unit,
      tqdm.tqdm.format_interval(eta),
      "  ".join(f"{k} {v}" for k, v in shown.items()),
    )

  def close(self) -> None:
    """Ends the line."""
    self._bar.close()
