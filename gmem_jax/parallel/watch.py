"""Watches the other processes, and ends this one when the job cannot go on.

`jax.distributed` alone aborts all processes some time after one of them has
died, with a stack trace. Threads here come before that, on its key-value store
and its barriers: one takes part in a barrier every few seconds, and one waits
for the news that the job ends. Then every process answers, and who does not
answer is gone.
"""

import contextlib
import hmac
import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from gmem_jax.parallel import jobs

# The exit status of a process that ends because of another one. The status that
# the other names is not believed, as anybody may write to the store, unless the
# news carries the job's secret.
AGAIN = 3

# Called with a message for the user and the exit status; does not return.
EndFn = Callable[[str, int], None]

_END, _HERE = "gmem_jax/end", "gmem_jax/here"
# Parts of the heartbeat: between two barriers, to reach one, and to answer the
# roll call. Together less than one.
_PERIOD, _PATIENCE, _ANSWER = 0.1, 0.6, 0.2
_LINGER = 1.0  # Seconds that process 0, which keeps the store, stays longer.
_LONGEST = 2000  # Characters of a message.
_FOREVER = 10**9  # Milliseconds: 11 days.


class Watch:
  """This process's watch over the others, from start-up to the end."""

  def __init__(
    self,
    client: Any,
    index: int,
    count: int,
    *,
    heartbeat: float,
    on_end: EndFn,
  ):
    """Starts the threads.

    Args:
      client: The client of `jax.distributed`.
      index: Number of this process.
      count: Number of processes.
      heartbeat: Seconds without a sign of life after which a process is gone.
      on_end: Called, in a thread, once the job cannot go on.
    """
    self._client, self._index, self._count = client, index, count
    self._heartbeat, self._on_end = heartbeat, on_end
    self._own: tuple[str, int] | None = None  # Why this process ends.
    self._failing, self._leaving = threading.Event(), threading.Event()
    self._threads = [
      threading.Thread(target=work, daemon=True)
      for work in (self._listen, self._beat)
    ]
    for thread in self._threads:
      thread.start()

  def fail(self, message: str, status: int) -> None:
    """Ends this process, and with it all others, each with one message.

    If another one is gone, that is the message: a collective mostly fails for
    that reason.
    """
    self._own = message, status
    self._failing.set()
    self._announce(f"process {self._index}: {message}", status)
    # The listening thread ends us. It cannot if the store is gone, of which jax
    # has not heard yet.
    time.sleep(2 * self._heartbeat)
    self._on_end(message, status)

  def leave(self, disconnect: Callable[[], None]) -> None:
    """Waits until all processes have finished, and disconnects."""
    self._client.wait_at_barrier("gmem_jax/finish", _FOREVER)
    self._leaving.set()
    disconnect()  # The threads' calls end with that.
    for thread in self._threads:
      thread.join(_LINGER)

  def _announce(self, message: str, status: int) -> None:
    """Says why the job ends; the first who does so is heard."""
    said = [message[:_LONGEST], status]
    news = json.dumps([*said, jobs.sign(json.dumps(said))])
    # Somebody may have been first.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.key_value_set(_END, news)

  def _beat(self) -> None:
    """Takes part in a barrier again and again; announces one that fails."""
    period, patience = (x * self._heartbeat for x in (_PERIOD, _PATIENCE))
    for n in itertools.count():
      if self._leaving.wait(period):
        return
      try:
        self._client.wait_at_barrier(f"gmem_jax/beat/{n}", int(1000 * patience))
      except jax.errors.JaxRuntimeError:
        if not self._leaving.is_set():
          self._announce(
            f"a process gave no sign of life for {patience:g} s, then came"
            " back",
            AGAIN,
          )
        return

  def _listen(self) -> None:
    """Waits for the end of the job, and ends this process."""
    try:
      news = self._client.blocking_key_value_get(_END, _FOREVER)
      missing = self._roll_call()
    except jax.errors.JaxRuntimeError:
      # Process 0 keeps the store. jax aborts us, too, within milliseconds.
      news, missing = "", [0]
    if self._leaving.is_set():
      return
    if missing:
      message, status = gone(missing), AGAIN
    else:
      # What is wrong there is mostly wrong here, too, and this one's to say.
      self._failing.wait(_PERIOD * self._heartbeat)
      message, status = self._own or _heard(news)
    if self._index == 0:
      time.sleep(_LINGER)  # Without us the others would miss us.
    self._on_end(message, status)

  def _roll_call(self) -> list[int]:
    """The processes that do not answer."""
    self._client.key_value_set(f"{_HERE}/{self._index}", "")
    deadline = time.monotonic() + _ANSWER * self._heartbeat
    while True:
      answers = self._client.key_value_dir_get(f"{_HERE}/")
      names = {key.rpartition("/")[2] for key, _ in answers}
      missing = [i for i in range(self._count) if str(i) not in names]
      if not missing or time.monotonic() > deadline:
        return missing
      time.sleep(0.2)


def gone(missing: list[int]) -> str:
  """What a user reads of processes that are gone."""
  one = len(missing) == 1
  return (
    f"process{'' if one else '(es)'} {jobs.listed(missing)}"
    f" {'is' if one else 'are'} gone (killed, out of memory, or"
    f" {'its host was' if one else 'their hosts were'} taken away)."
    " The newest checkpoint is kept: the same command on all hosts continues."
  )


def _heard(news: str) -> tuple[str, int]:
  """The message and the status in the news, which may be anybody's."""
  text, status = "the job was ended", AGAIN
  try:
    message, named, mac = json.loads(news)
    text = str(message)[:_LONGEST]
    signed = jobs.sign(json.dumps([message, named]))
    if signed and hmac.compare_digest(signed, mac):
      status = int(named)
  except (ValueError, TypeError):
    pass
  return "".join(c if c.isprintable() else " " for c in text), status
