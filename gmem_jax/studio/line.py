"""Who waits for the device, and for how long."""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator

# Finished calls of a kind that its mean is taken of.
_LAST = 5
# Seconds after which nobody is there who has not asked how long it takes.
_GONE = 90.0

# A visitor, and the button that was clicked.
Key = tuple[str | None, str]


@dataclasses.dataclass
class _Call:
  """A call that waits, or runs since `begun` and is `done` in part."""

  asked: float
  begun: float | None = None
  first: tuple[float, float] | None = None
  done: float = 0.0

  def there(self, now: float) -> bool:
    """Whether it runs, or somebody waits for it."""
    return self.begun is not None or now - self.asked < _GONE


class WaitingLine:
  """Calls in the order of their clicks; of the device, one runs at a time.

  Gradio has the queue; here is only what is said of it. Gradio's own estimate
  is the mean of all calls, and none while a button that runs has none yet.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._calls: dict[Key, _Call] = {}
    self._took: dict[str, collections.deque[float]] = collections.defaultdict(
      lambda: collections.deque(maxlen=_LAST)
    )

  def join(self, key: Key) -> None:
    """A visitor has clicked."""
    now = time.monotonic()
    with self._lock:
      self._calls = {
        other: call
        for other, call in self._calls.items()
        if other != key and call.there(now)
      }
      self._calls[key] = _Call(now)

  def leave(self, key: Key) -> None:
    """A visitor's call is over, whatever came of it."""
    with self._lock:
      self._calls.pop(key, None)

  @contextlib.contextmanager
  def turn(self, key: Key) -> Iterator[None]:
    """Around a call; one that has told that all is done counts as finished."""
    with self._lock:
      now = time.monotonic()
      call = self._calls.setdefault(key, _Call(now))
      call.begun = now
    try:
      yield
    finally:
      with self._lock:
        if call.done >= 1:
          self._took[key[1]].append(time.monotonic() - now)
        if self._calls.get(key) is call:
          del self._calls[key]

  def tell(self, key: Key, done: float) -> None:
    """Tells how much of a running call is done, in [0, 1]."""
    with self._lock:
      call = self._calls.get(key)
      if call is None:
        return
      call.done = done
      # What came before is compilation, for the most part.
      if call.first is None and done > 0:
        call.first = time.monotonic(), done

  def wait(self, key: Key) -> tuple[int, float | None] | None:
    """What is before a waiting call.

    Returns:
      (number of calls, seconds until all are over), or None if it does not
      wait. The seconds are None until one can tell.
    """
    with self._lock:
      now = time.monotonic()
      call = self._calls.get(key)
      if call is None or call.begun is not None:
        return None
      call.asked = now
      before = []
      for other, each in self._calls.items():
        if each is call:
          break
        if each.there(now):
          before.append((other, each))
      seconds = [self._left(other[1], each, now) for other, each in before]
    known = [each for each in seconds if each is not None]
    whole = len(known) == len(seconds)
    return len(before), sum(known, 0.0) if whole else None

  def _left(self, kind: str, call: _Call, now: float) -> float | None:
    """Seconds that a call still takes: by its own pace, or by the last ones."""
    if call.begun is not None and call.first is not None:
      since, part = call.first
      if call.done > part:
        pace = (now - since) / (call.done - part)
        return pace * (1 - call.done)
    took = self._took.get(kind) or [
      each for others in self._took.values() for each in others
    ]
    if not took:
      return None
    mean = sum(took) / len(took)
    if call.begun is None:
      return mean
    # One that takes longer than the others did may take far longer.
    left = call.begun + mean - now
    return left if left > 0 else None


def words(wait: tuple[int, float | None] | None) -> str:
  """What is told of `WaitingLine.wait`; "" if nothing is waited for."""
  if wait is None or not wait[0]:
    return ""
  count, seconds = wait
  before = "1 call is" if count == 1 else f"{count} calls are"
  if seconds is None:
    when = "how long they take is not yet known"
    when = when if count > 1 else "how long it takes is not yet known"
  else:
    when = f"your turn in about {max(1, round(seconds))} s"
  return f"{before} before yours: {when}."
