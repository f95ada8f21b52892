"""The line between processes; here each process is an object and a thread."""

import contextlib
import queue
import socket
import threading
import time

import pytest

from gmem_jax.parallel import peers
from tests import job

# Asyncio's streams close their sockets when they are collected.
pytestmark = pytest.mark.filterwarnings(
  "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class Cast:
  """Peers of one job, and how each of them ended."""

  def __init__(self, count, **changes):
    port = job.free_port()
    self.ends = [queue.Queue() for _ in range(count)]
    self.all = [
      peers.Peers(
        ("127.0.0.1", port),
        i,
        count,
        **{
          "card": {"seed": 0},
          "on_end": lambda *end, i=i: self.ends[i].put(end),
          "beat": 0.1,
          "silence": 20.0,
        }
        | {k: v[i] for k, v in changes.items()},
      )
      for i in range(count)
    ]

  def join(self, *present, seconds=20.0):
    """Lets some join; returns each one's error, or None."""
    errors = {}

    def one(i):
      try:
        self.all[i].join(seconds)
        errors[i] = None
      except peers.JoinError as error:
        errors[i] = str(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in present]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return errors

  def cut(self, i):
    """What the others see of a process that is killed."""
    peer = self.all[i]

    def abort():  # At once: this process must not tell of the others' ends.
      for line in peer._lines.values():
        line.transport.abort()

    peer._loop.call_soon_threadsafe(abort)

  def end_of(self, i):
    return self.ends[i].get(timeout=20)


@contextlib.contextmanager
def joined(count, **changes):
  cast = Cast(count, **changes)
  assert cast.join(*range(count)) == dict.fromkeys(range(count))
  yield cast
  for peer in reversed(cast.all):
    peer.leave()


def test_the_missing_are_named_to_all_who_are_there():
  cast = Cast(4)
  errors = cast.join(0, 2, seconds=1.0)
  expected = "process(es) 1, 3 of 4 did not join within 1 s; present: 0, 2"
  assert errors == {0: expected, 2: expected}


def test_a_missing_process_0_is_named():
  errors = Cast(2).join(1, seconds=0.5)
  assert "process 0 did not answer process 1 at 127.0.0.1:" in errors[1]


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    (
      {"card": [{"seed": 0, "x": 1}, {"seed": 7, "x": 1}]},
      "process 1 differs in seed: 7, on process 0 0",
    ),
    ({"count": [2, 3]}, "process 1 was told of 3 processes, process 0 of 2"),
    ({"index": [0, 2]}, "two processes call themselves process 2"),
  ],
)
def test_what_does_not_fit_is_said_to_both(changes, expected):
  cast = Cast(2)
  arguments = dict(beat=0.1, silence=20.0, on_end=print)
  for i in range(2):
    ours = {"index": i, "count": 2, "card": {}}
    ours |= {k: v[i] for k, v in changes.items()}
    cast.all[i] = peers.Peers(cast.all[0]._address, **ours, **arguments)
  assert cast.join(0, 1) == {0: expected, 1: expected}


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_process_is_named_to_all_others(lost):
  with joined(3) as cast:
    cast.cut(lost)
    for i in {0, 1, 2} - {lost}:
      message, status = cast.end_of(i)
      assert message.startswith(f"process {lost} is gone")
      assert status == peers.LOST


def test_a_silent_process_counts_as_gone():
  with joined(3, beat=[0.1, 1000.0, 0.1], silence=[1.0, 1000.0, 20.0]) as cast:
    for i in (0, 2):
      assert cast.end_of(i)[0].startswith("process 1 is gone")


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_is_told_to_all_others(failing):
  with joined(3) as cast:
    cast.all[failing].tell("no such file", 2)
    for i in {0, 1, 2} - {failing}:
      assert cast.end_of(i) == ("no such file", 2)


def test_only_the_first_reason_is_reported():
  """A process that fails while it hears of a failure keeps silent."""
  with joined(2) as cast:
    assert cast.all[1].tell("no such file", 2)
    assert cast.all[0].ended.wait(20)
    assert not cast.all[0].tell("no such file either", 2)
    assert cast.end_of(0) == ("no such file", 2)
    time.sleep(0.2)
    assert cast.ends[1].empty()


@pytest.mark.parametrize("asking", [0, 1])
def test_all_stop_at_the_same_count(asking):
  with joined(3) as cast:
    for peer, count in zip(cast.all, (3, 7, 5), strict=True):
      assert not peer.reached(count)
    cast.all[asking].request_stop()
    for peer in cast.all:
      peer._vote._decided.wait(20)
    # Each goes on to the furthest, and one more.
    stops = [
      next(n for n in range(first, 20) if peer.reached(n))
      for peer, first in zip(cast.all, (4, 8, 6), strict=True)
    ]
    assert stops == [8, 8, 8]


def test_who_leaves_is_not_missed():
  with joined(3) as cast:
    cast.all[1].leave()
    cast.all[1]._lines[0].transport.abort()
    cast.all[2].tell("the end", 1)  # later than any news of process 1
    assert cast.end_of(0) == ("the end", 1)


def test_process_0_may_leave_first_and_at_once():
  """Its server ends although the others are still connected."""
  with joined(3) as cast:
    began = time.monotonic()
    cast.all[0].leave()
    assert time.monotonic() - began < 1
    assert not cast.all[0]._thread.is_alive()


def test_strangers_are_ignored():
  with joined(2) as cast:
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"join": "x"}\n', b"{"):
      with socket.create_connection(cast.all[0]._address) as stranger:
        stranger.sendall(sent)
    cast.all[1].tell("still there", 1)
    assert cast.end_of(0) == ("still there", 1)
