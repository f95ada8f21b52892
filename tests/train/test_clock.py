import pytest

from gmem_jax.train import clock


@pytest.fixture
def now(monkeypatch):
  """The time in seconds, in a list; tests set it."""
  time = [100.0]
  monkeypatch.setattr(clock.time, "monotonic", lambda: time[0])
  return time


def test_rates_are_those_since_the_last_lap(now):
  ours = clock.Clock(step=10, seconds=0.0, batch_size=32)
  now[0] += 2
  assert ours.lap(14) == {
    "perf/steps_per_s": 2.0,
    "perf/images_per_s": 64.0,
    "perf/train_seconds": 2.0,
  }
  now[0] += 1
  assert ours.lap(15)["perf/steps_per_s"] == 1.0


def test_earlier_runs_count_and_evaluations_do_not(now):
  ours = clock.Clock(step=10, seconds=50.0, batch_size=32)
  now[0] += 2
  with ours.paused():
    now[0] += 1000
  now[0] += 3
  assert ours.seconds == 55.0
  assert ours.lap(11) == {
    "perf/steps_per_s": 0.2,
    "perf/images_per_s": 6.4,
    "perf/train_seconds": 55.0,
  }
