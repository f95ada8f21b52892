"""How several processes agree on where to stop.

One asks to stop, and process 0 asks all how far they have come; all go on to
the furthest. Threads answer, so that no process waits for another one's steps,
and whoever has answered goes no further until it knows where to stop.

(jax has the same protocol; but there orbax reports steps to it, too, on another
scale than the loop's dispatches.)
"""

import threading
from collections.abc import Mapping
from typing import Any


class StopVote:
  """One process's part of the agreement; messages are given and taken."""

  def __init__(self, index: int, count: int):
    """Nobody has asked yet.

    Args:
      index: Number of this process.
      count: Number of processes.
    """
    self._index, self._count = index, count
    self._lock = threading.Lock()
    self._at = 0  # what `reached` was last called with
    self._asked = False  # from now on `reached` waits for the answer
    self._answers: dict[int, int] = {}
    self._stop_at: int | None = None
    self._decided = threading.Event()

  def reached(self, count: int) -> bool:
    """Whether to stop here; waits while that is being found out.

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
      index: Whose it is.
      message: One of {"stop": true}, {"ask": true}, {"at": 7}, {"stop_at": 8};
        others mean nothing here.

    Returns:
      What to send then: from process 0 to all, from the others to process 0.
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
