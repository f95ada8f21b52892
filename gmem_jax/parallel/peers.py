"""The processes of one job: which have joined, failed, left or been lost.

Every process keeps a line (a TCP connection) to process 0. It carries the roll
call at the start, a beat every few seconds, the vote on where to stop
(`stop_vote`), and the news that ends a job: a process that failed says why, and
one that was killed leaves a broken line. Collectives only hang, or name a
broken socket. So a watching thread ends the process, with one line that names
the one that is missing.

A message is one line of JSON: {"join": 1, "of": 4, "card": {…}}, {"go": true},
{"end": "process 2 is gone", "status": 3}, {"leave": true}, one of the vote, or
a beat, {}.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from gmem_jax.parallel import stop_vote

# The exit status of a process that ends because another one is gone.
LOST = 3

# Called with a message for the user and the exit status.
EndFn = Callable[[str, int], None]
_AFTERWARDS = (
  "The newest checkpoint is kept: the same command on all hosts continues."
)


class JoinError(ValueError):
  """The processes did not all join; the message says which, or why."""


class Peers:
  """This process's line to the others; process 0 holds all of them."""

  def __init__(
    self,
    address: tuple[str, int],
    index: int,
    count: int,
    *,
    card: Mapping[str, Any],
    on_end: EndFn,
    beat: float = 5.0,
    silence: float = 60.0,
  ):
    """Prepares; `join` opens the line.

    Args:
      address: Host and port on which process 0 listens.
      index: Number of this process.
      count: Number of processes.
      card: Settings that must be the same on all of them, JSON; compared when
        a process joins.
      on_end: Called, in a thread, once the job cannot go on.
      beat: Seconds between beats.
      silence: Seconds without a beat after which a process counts as gone.
    """
    self.index = index
    self._address, self._index, self._count = address, index, count
    self._card, self._on_end = dict(card), on_end
    self._beat, self._silence = beat, silence
    self._lines: dict[int, asyncio.StreamWriter] = {}
    self._left: set[int] = set()
    self._verdict: str | None = None  # Why the roll call failed.
    self._complete = threading.Event()  # The roll call is over.
    self.ended = threading.Event()  # The reason for the end is known.
    self._report = threading.Lock()  # Taken by the one who reports it.
    self._leaving = False
    self._vote = stop_vote.StopVote(index, count)
    self._loop: asyncio.AbstractEventLoop | None = None
    self._thread = threading.Thread(target=self._work, daemon=True)

  def join(self, seconds: float) -> None:
    """Waits, at most so many seconds, until all processes have joined.

    Raises:
      JoinError: Naming the missing processes, or what does not fit together.
    """
    deadline = time.monotonic() + seconds
    self._loop = asyncio.new_event_loop()
    self._thread.start()
    self._start(self._host() if self._index == 0 else self._call(deadline))
    # Process 0 decides; its clock may have started later than ours.
    self._complete.wait(seconds if self._index == 0 else seconds + 30)
    if self._index == 0 and not self._complete.is_set():
      missing = sorted(set(range(1, self._count)) - self._lines.keys())
      self._verdict = (
        f"process(es) {_listed(missing)} of {self._count} did not join within"
        f" {seconds:g} s; present: {_listed([0, *sorted(self._lines)])}"
      )
    if self._verdict is None and not self._complete.is_set():
      self._verdict = "process 0 did not end the roll call"
    if self._verdict is not None:
      self.tell(self._verdict, 2)
      self.leave()
      raise JoinError(self._verdict)

  def tell(self, message: str, status: int) -> bool:
    """Tells all processes why the job ends, and with which exit status.

    Returns:
      False, without a word to anybody, if the watching thread has begun to
      report another reason.
    """
    if not self._claim():
      return False
    self._run(self._send_all, {"end": message, "status": status})
    return True

  def request_stop(self) -> None:
    """Asks all processes to stop soon; safe in a signal handler."""
    self._start(self._heard(self._index, {"stop": True}))

  def reached(self, count: int) -> bool:
    """Whether all processes stop here; see `StopVote.reached`."""
    return self._vote.reached(count)

  def leave(self) -> None:
    """Tells the others that this process has finished, and disconnects."""
    self._leaving = True
    if self._loop is not None:
      self._run(self._say_goodbye)
      self._loop.call_soon_threadsafe(self._loop.stop)
      self._thread.join(timeout=2)
      self._loop = None

  def _work(self) -> None:
    """The watching thread."""
    loop = self._loop
    assert loop is not None
    loop.run_forever()
    loop.close()

  def _start(self, work: Coroutine[Any, Any, None]) -> Any:
    """Starts work on the watching thread."""
    assert self._loop is not None
    return asyncio.run_coroutine_threadsafe(work, self._loop)

  def _run(self, fn: Callable[..., Any], *args: Any) -> None:
    """The same, and waits; a no-op without a line."""
    if self._loop is not None:
      # There may be nobody left to hear it.
      with contextlib.suppress(TimeoutError, OSError):
        self._start(fn(*args)).result(timeout=2)

  async def _say_goodbye(self) -> None:
    await self._send_all({"leave": True})
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
      task.cancel()
    # Lines first: from Python 3.12 on a server only closes after its last line.
    for line in self._lines.values():
      line.close()
    await asyncio.gather(*others, return_exceptions=True)

  async def _send_all(self, message: dict[str, Any]) -> None:
    for line in list(self._lines.values()):
      await _send(line, message)

  def _end(self, message: str, status: int) -> None:
    """Reports, once, that the job cannot go on."""
    if self._leaving or not self._claim():
      return
    threading.Thread(
      target=self._on_end, args=(message, status), daemon=True
    ).start()

  def _claim(self) -> bool:
    """Whether the caller is the one to report the end: the first who asks."""
    first = self._report.acquire(blocking=False)
    self.ended.set()
    return first

  # Process 0.

  async def _host(self) -> None:
    """Listens; each connection becomes a line once it has joined."""
    try:
      server = await asyncio.start_server(
        self._answer, host=None, port=self._address[1], reuse_address=True
      )
    except OSError as error:
      self._verdict = (
        f"process 0 cannot listen on port {self._address[1]}: {error.strerror}"
      )
      self._complete.set()
      return
    asyncio.create_task(self._beat_forever())  # noqa: RUF006 - ends with us
    if self._count == 1:
      self._complete.set()
    async with server:
      await server.serve_forever()

  async def _answer(self, reader, writer) -> None:
    """Serves one connection: a process that joins, or a stranger."""
    hello = await _receive(reader, seconds=10.0)
    if not hello or not isinstance(hello.get("join"), int):
      writer.close()
      return
    index = hello["join"]
    refusal = self._refusal(index, hello)
    if refusal:
      if not self._complete.is_set():
        self._verdict = refusal
        await _send(writer, {"end": refusal, "status": 2})
        self._complete.set()
      writer.close()
      return
    self._lines[index] = writer
    if len(self._lines) == self._count - 1:
      await self._send_all({"go": True})
      self._complete.set()
    end = await self._listen(reader, index)
    if index in self._left or self._leaving:
      return
    message, status = end or (_gone(index), LOST)
    if end is None and not self._complete.is_set():
      self._lines.pop(index)  # It died early, and may be restarted.
      return
    if not self.ended.is_set():
      others = {i: w for i, w in self._lines.items() if i != index}
      for line in others.values():
        await _send(line, {"end": message, "status": status})
      self._end(message, status)

  def _refusal(self, index: int, hello: Mapping[str, Any]) -> str | None:
    """Why a process cannot join, or None."""
    if hello.get("of") != self._count:
      return (
        f"process {index} was told of {hello.get('of')} processes, process 0 of"
        f" {self._count}"
      )
    if not 0 < index < self._count or index in self._lines:
      return f"two processes call themselves process {index}"
    theirs, ours = hello.get("card") or {}, self._card
    differing = [
      f"{key}: {theirs.get(key)!r}, on process 0 {ours.get(key)!r}"
      for key in sorted(theirs.keys() | ours.keys())
      if theirs.get(key) != ours.get(key)
    ]
    if differing:
      return f"process {index} differs in " + "; ".join(differing)
    return None

  # The others.

  async def _call(self, deadline: float) -> None:
    """Calls process 0 until it answers, then listens."""
    host, port = self._address
    seconds = deadline - time.monotonic()
    while True:
      try:
        reader, writer = await asyncio.open_connection(host, port)
        break
      except OSError as error:
        if time.monotonic() > deadline:
          self._verdict = (
            f"process 0 did not answer process {self._index} at {host}:{port}"
            f" within {seconds:g} s ({error.strerror or error})"
          )
          self._complete.set()
          return
        await asyncio.sleep(0.2)
    self._lines[0] = writer
    _keep_alive(writer)
    hello = {"join": self._index, "of": self._count, "card": self._card}
    await _send(writer, hello)
    asyncio.create_task(self._beat_forever())  # noqa: RUF006 - ends with us
    end = await self._listen(reader, 0)
    if not self._complete.is_set():
      self._verdict = end[0] if end else "process 0 is gone"
      self._complete.set()
    elif 0 not in self._left:
      self._end(*(end or (_gone(0), LOST)))

  # Both.

  async def _listen(self, reader, index: int) -> tuple[str, int] | None:
    """Reads a line until it ends; returns (message, status) if one came."""
    while True:
      message = await _receive(reader, self._silence)
      if message is None:
        return None
      if "end" in message:
        return str(message["end"]), int(message.get("status", 1))
      await self._heard(index, message)

  async def _heard(self, index: int, message: Mapping[str, Any]) -> None:
    """Acts on a message."""
    if "go" in message:
      self._complete.set()
    if "leave" in message:
      self._left.add(index)
    for reply in self._vote.heard(index, message):
      await self._send_all(reply)

  async def _beat_forever(self) -> None:
    while True:
      await asyncio.sleep(self._beat)
      await self._send_all({})


async def _send(line: asyncio.StreamWriter, message: dict[str, Any]) -> None:
  try:
    line.write(json.dumps(message).encode() + b"\n")
    await line.drain()
  except OSError:  # Whoever reads this line notices, and knows the reason.
    pass


async def _receive(reader, seconds: float) -> dict[str, Any] | None:
  """Reads one message; None if the line is broken, silent or not ours."""
  try:
    line = await asyncio.wait_for(reader.readline(), seconds)
    message = json.loads(line) if line.endswith(b"\n") else None
  except (TimeoutError, OSError, ValueError, asyncio.CancelledError):
    return None
  return message if isinstance(message, dict) else None


def _keep_alive(line: asyncio.StreamWriter) -> None:
  line.get_extra_info("socket").setsockopt(
    socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
  )


def _listed(numbers: list[int]) -> str:
  """Numbers as text, e.g. "1, 2, 5"; only the first 16."""
  shown = ", ".join(str(n) for n in numbers[:16])
  return shown + (f" … ({len(numbers)})" if len(numbers) > 16 else "")


def _gone(index: int) -> str:
  return (
    f"process {index} is gone (killed, out of memory, or its host was taken"
    f" away). {_AFTERWARDS}"
  )
