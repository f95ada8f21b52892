"""What is said of who waits for the device."""

import pytest

from gmem_jax.studio import line as line_lib


@pytest.fixture
def clock(monkeypatch):
  """Seconds, which pass only here."""

  class Clock:
    now = 100.0

    def monotonic(self):
      return self.now

  found = Clock()
  monkeypatch.setattr(line_lib, "time", found)
  return found


def finish(line, clock, key, seconds):
  """A call that is done after so many seconds."""
  line.join(key)
  with line.turn(key):
    clock.now += seconds
    line.tell(key, 1.0)


def test_nobody_waits_for_nobody(clock):
  line = line_lib.WaitingLine()
  assert line.wait(("ann", "make")) is None
  line.join(("ann", "make"))
  assert line_lib.words(line.wait(("ann", "make"))) == ""
  with line.turn(("ann", "make")):
    assert line.wait(("ann", "make")) is None


def test_a_running_call_is_judged_by_its_own_pace(clock):
  line = line_lib.WaitingLine()
  ann, ben = ("ann", "make"), ("ben", "make")
  line.join(ann)
  line.join(ben)
  assert line.wait(ben) == (1, None), "nothing is known yet"
  with line.turn(ann):
    clock.now += 50  # It compiles, which says nothing of the rest.
    line.tell(ann, 0.1)
    assert line.wait(ben) == (1, None)
    clock.now += 3
    line.tell(ann, 0.4)
    count, seconds = line.wait(ben)
    assert (count, seconds) == (1, pytest.approx(6))
  assert line.wait(ben) == (0, 0)


def test_those_who_wait_count_as_the_last_finished_ones(clock):
  line = line_lib.WaitingLine()
  for seconds in (1000, 2, 4, 2, 4, 3):
    finish(line, clock, ("ann", "make"), seconds)
  finish(line, clock, ("ann", "edit"), 20)
  # What was stopped or did not fit has no part in it.
  with line.turn(("ann", "make")):
    clock.now += 0.1
    line.tell(("ann", "make"), 0.5)
  with pytest.raises(OSError, match="gone"), line.turn(("ann", "make")):
    raise OSError("gone")
  keys = [("ann", "make"), ("ben", "edit"), ("cem", "make"), ("dot", "make")]
  for key in keys:
    line.join(key)
  with line.turn(keys[0]):
    clock.now += 1
    # The first has two of its mean of three left.
    assert line.wait(keys[3]) == (3, pytest.approx(2 + 20 + 3))
    line.leave(keys[1])
    assert line.wait(keys[3]) == (2, pytest.approx(2 + 3))
    clock.now += 10  # It is late: nobody can tell how much.
    assert line.wait(keys[3]) == (2, None)
    # A visitor who has left asks no more.
    line.wait(keys[3])
    clock.now += 89
    assert line.wait(keys[3]) == (1, None)


def test_a_kind_that_was_never_finished_counts_as_the_others(clock):
  line = line_lib.WaitingLine()
  finish(line, clock, ("ann", "make"), 8)
  line.join(("ben", "between"))
  line.join(("cem", "make"))
  assert line.wait(("cem", "make")) == (1, pytest.approx(8))


@pytest.mark.parametrize(
  ("wait", "said"),
  [
    ((1, None), "1 call is before yours: how long it takes is not yet known."),
    (
      (2, None),
      "2 calls are before yours: how long they take is not yet known.",
    ),
    ((1, 0.2), "1 call is before yours: your turn in about 1 s."),
    ((3, 41.6), "3 calls are before yours: your turn in about 42 s."),
  ],
)
def test_it_is_said_in_words(wait, said):
  assert line_lib.words(wait) == said
