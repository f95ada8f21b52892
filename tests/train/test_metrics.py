import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.train import metrics


def test_interval_averages_over_steps_and_dispatches():
  interval = metrics.Interval()
  interval.add(0, {"train/loss": jnp.array([1.0, 2.0])})
  interval.add(2, {"train/loss": jnp.array([3.0, 6.0])})
  closed = interval.close(4)
  assert closed.step == 4
  assert closed.fetch() == {"train/loss": 3.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_first_bad_step_is_named(bad):
  interval = metrics.Interval()
  interval.add(10, {"loss": jnp.ones(4), "grad_norm": jnp.ones(4)})
  interval.add(
    14, {"loss": jnp.ones(4), "grad_norm": jnp.array([1.0, 1.0, bad, bad])}
  )
  interval.add(18, {"loss": jnp.full(4, bad), "grad_norm": jnp.ones(4)})
  with pytest.raises(metrics.NonFiniteError, match="step 17 "):
    interval.close(22).fetch()


def test_writer_drops_what_a_killed_run_wrote_too_much(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  for step in (10, 20, 30):
    writer.write_scalars(step, {"train/loss": 1.0 / step})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("ab") as f:
    f.write(b'{"step": 40, "train/lo')  # killed while writing
    # What a crash of the machine may leave.
    f.write(b"\n{}\n3\n\0\0\n\xff\xfe\n" + b"[" * 5000)
  writer = metrics.Writer(tmp_path, 20)
  writer.write_scalars(30, {"train/loss": 0.5})
  writer.close()
  records = metrics.read_jsonl(tmp_path / "metrics.jsonl")
  assert [r["step"] for r in records] == [10, 20, 30]
  assert records[-1] == {"step": 30, "train/loss": 0.5}


def events(directory):
  """What the files of a TensorBoard directory hold."""
  from tensorboardX.proto import event_pb2

  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while data:  # TFRecord: length, checksum, record, checksum
      length = int.from_bytes(data[:8], "little")
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def test_tensorboard_file_holds_the_scalars(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.write_scalars(7, {"train/loss": 0.25})
  writer.write_images(7, {"grid": np.zeros((4, 4, 1), np.uint8)})
  writer.close()
  found = {}
  for event in events(tmp_path / "tensorboard"):
    found |= {v.tag: v for v in event.summary.value}
  assert found["train/loss"].simple_value == 0.25
  assert {"grid"} <= set(found)


def test_jsonl_is_valid_json(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.write_scalars(1, {"a": 1.5})
  writer.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text) == {"step": 1, "a": 1.5}


def test_the_first_row_waits_for_no_tensorboard(tmp_path):
  code = """
import pathlib, sys
import gmem_jax.commands.train, gmem_jax.commands.evaluate
heavy = lambda: {"tensorboardX", "torch", "tensorflow"} & sys.modules.keys()
print(heavy())
writer = gmem_jax.train.metrics.Writer(pathlib.Path(sys.argv[1]), 0)
writer.flush()
print(heavy())
sys.modules["tensorboardX"] = None  # Its import fails.
try:
  writer.write_scalars(1, {"a": 1.0})
except ImportError:
  print((pathlib.Path(sys.argv[1]) / "metrics.jsonl").read_text(), end="")
del sys.modules["tensorboardX"]
writer.open()
print("tensorboardX" in heavy())
writer.close()
"""
  run = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  row = '{"step": 1, "a": 1.0}'
  assert run.stdout.splitlines() == ["set()", "set()", row, "True"]


def test_what_a_killed_run_wrote_too_much_is_void_on_the_board(tmp_path):
  def voids():
    found = events(tmp_path / "tensorboard")
    return [event.step for event in found if event.HasField("session_log")]

  first = metrics.Writer(tmp_path, 0)
  for step in (10, 20, 30):
    first.write_scalars(step, {"a": 1.0})
  first.close()
  assert voids() == []
  metrics.Writer(tmp_path, 20).close()  # Nothing is left to do.
  assert voids() == [21]
  metrics.Writer(tmp_path, 0).close()  # No checkpoint was written.
  assert voids() == [21, 1]


@pytest.fixture
def now(monkeypatch):
  """The time in seconds, in a list; tests set it."""
  time = [100.0]
  monkeypatch.setattr(metrics.time, "monotonic", lambda: time[0])
  return time


def test_rates_are_those_since_the_last_lap(now):
  ours = metrics.Clock(step=10, seconds=0.0, batch_size=32)
  now[0] += 2
  assert ours.lap(14) == {
    "perf/steps_per_s": 2.0,
    "perf/images_per_s": 64.0,
    "perf/train_seconds": 2.0,
  }
  now[0] += 1
  assert ours.lap(15)["perf/steps_per_s"] == 1.0


def test_earlier_runs_count_and_evaluations_do_not(now):
  ours = metrics.Clock(step=10, seconds=50.0, batch_size=32)
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
