"""How several processes agree on where to stop.

One process asks to stop. Process 0 then asks all how far they have come, and
all go on to one dispatch after the furthest. Threads answer, so that no process
waits for another's steps; after its answer a process goes no further until it
knows where to stop.

jax has the same protocol, but orbax reports steps to it, too, on another scale
than the loop's dispatches.
"""

import threading
from collections.abc import Mapping
from typing import Any


class StopVote:
  """One process's part in the vote; the caller carries the messages."""

  def __init__(self, index: int, count: int):
    """Starts process `index` of `count`, with no stop requested."""
    self._index, self._count = index, count
    self._lock = threading.Lock()
    self._at = 0  # The last argument of `reached`.
    self._asked = False  # If true, `reached` waits for the decision.
    self._answers: dict[int, int] = {}
    self._stop_at: int | None = None
    self._decided = threading.Event()

  def reached(self, count: int) -> bool:
    """Whether to stop here; waits while a vote is open.

    Args:
      count: How far this process has come; all processes call this with the
        same growing numbers.
    """
    with self._lock:
      self._at, asked = count, self._asked
    if asked:
      self._decided.wait()
    return self._stop_at is not None and count >= self._stop_at

  def heard(
    self, index: int, message: Mapping[str, Any]
  ) -> list[dict[str, Any]]:
    """Takes a message.

    Args:
      index: The process that it came from.
      message: {"stop": true}, {"ask": true}, {"at": 7} or {"stop_at": 8};
        others are ignored.

    Returns:
      The replies: from process 0 to all, from the others to process 0.
    """
    main = self._index == 0
    if "stop" in message and not main:
      return [dict(message)]
    if "stop" in message or "ask" in message:
      return self._answer(main) if not self._asked else []
    if "at" in message and main:
      return self._count_answer(index, int(message["at"]))
    if "stop_at" in message:
      self._stop_at = int(message["stop_at"])
      self._decided.set()
    return []

  def _answer(self, main: bool) -> list[dict[str, Any]]:
    with self._lock:
      self._asked, at = True, self._at
    if not main:
      return [{"at": at}]
    return [{"ask": True}, *self._count_answer(0, at)]

  def _count_answer(self, index: int, at: int) -> list[dict[str, Any]]:
    self._answers[index] = at
    if len(self._answers) < self._count:
      return []
    decision = {"stop_at": max(self._answers.values()) + 1}
    self.heard(0, decision)
    return [decision]
