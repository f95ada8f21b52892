"""Work that is looked at while it goes on, and can be stopped."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gmem_jax.sample import images as images_lib, making, stepwise

# Seconds between two looks: each costs a run of the decoder.
EVERY = 0.4

Work = Callable[[making.OnStep], images_lib.SampledImages]


class Look(NamedTuple):
  """How far the work is.

  Attributes:
    done: Part of the work, in [0, 1].
    numbers: [n] the images that are being made, or () before there are any.
    pixels: uint8 [n h w c] as they are now.
    seconds: Since the beginning.
    made: All images, at the end; None before.
  """

  done: float
  numbers: np.ndarray | tuple[()]
  pixels: np.ndarray | None
  seconds: float
  made: images_lib.SampledImages | None = None


class StoppedError(Exception):
  """A visitor has stopped the work, or looks no more."""


# What a visitor is told, instead of being a fault of ours.
TOLD = (ValueError, OSError, StoppedError)


def looks(
  work: Work,
  count: int,
  stopped: Callable[[float], bool] = lambda done: False,
) -> Iterator[Look]:
  """Does work that makes `count` images; ends it when it is closed.

  `stopped` is told at each step what part is done, in [0, 1].

  Yields at least every `EVERY` seconds, as a page can be told, and the work be
  closed, only then. The last look has all images.

  Raises:
    StoppedError: If `stopped` says so.
    Exception: What the work raises.
  """
  begun, stop = time.monotonic(), threading.Event()
  told: queue.Queue[Any] = queue.Queue()
  last = [0.0]

  def on_step(preview: stepwise.Preview) -> None:
    finished = int(preview.numbers[0]) + (
      len(preview.numbers) * preview.step / preview.steps
    )
    if stop.is_set() or stopped(finished / count):
      raise StoppedError
    # The page is served by this process, too, and small networks would hold
    # Python's lock all the time.
    time.sleep(0.001)
    now = time.monotonic()
    if now - last[0] < EVERY and preview.step < preview.steps:
      return
    last[0] = now
    told.put((finished / count, preview.numbers, preview.pixels()))

  def run() -> None:
    try:
      told.put(work(on_step))
    except BaseException as error:  # Raised below, where somebody listens.
      told.put(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  look = Look(0.0, (), None, 0.0)
  try:
    while look.made is None:
      try:
        news = told.get(timeout=EVERY)
      except queue.Empty:
        news = None
      seconds = time.monotonic() - begun
      if isinstance(news, BaseException):
        raise news
      if isinstance(news, tuple):
        look = Look(news[0], news[1], news[2], seconds)
      elif news is not None:
        numbers = np.arange(len(news.pixels))
        look = Look(1.0, numbers, news.pixels, seconds, news)
      else:
        look = look._replace(seconds=seconds)
      yield look
  finally:
    stop.set()
    # Or the next work would share the device with what is left of this one.
    thread.join()
