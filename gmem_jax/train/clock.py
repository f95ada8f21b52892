"""How long a run has trained, and how fast."""

import contextlib
import time


class Clock:
  """Seconds of training, over all restarts, evaluation left out."""

  def __init__(self, step: int, seconds: float, batch_size: int):
    """Starts to count.

    Args:
      step: Steps already taken.
      seconds: Seconds that took.
      batch_size: Images a step.
    """
    self._start = time.monotonic() - seconds
    self._batch_size = batch_size
    self._lap = step, seconds

  @property
  def seconds(self) -> float:
    """Seconds of training so far."""
    return time.monotonic() - self._start

  def lap(self, step: int) -> dict[str, float]:
    """Rates since the last lap.

    Args:
      step: Steps taken so far.
    """
    (first, then), now = self._lap, self.seconds
    self._lap = step, now
    per_second = (step - first) / max(now - then, 1e-9)
    return {
      "perf/steps_per_s": per_second,
      "perf/images_per_s": per_second * self._batch_size,
      "perf/train_seconds": now,
    }

  @contextlib.contextmanager
  def paused(self):
    """Leaves out the time spent inside."""
    began = time.monotonic()
    yield
    self._start += time.monotonic() - began
