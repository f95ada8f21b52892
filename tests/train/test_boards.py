"""What TensorBoard, the profiler and Weights & Biases are given, read back."""

import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gmem_jax.config import resolve
from gmem_jax.data import write_images
from gmem_jax.files import atomic
from gmem_jax.train import loop, metrics, tensorboard, wandb_board
from tests import tiny
from tests.train.test_loop import dataset, make_run  # noqa: F401  # A fixture.
from tests.train.test_metrics import events

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def test_a_histogram_counts_every_step():
  norms = 10.0 ** np.random.default_rng(0).normal(0, 1.5, (4, 64))
  norms[0, :3] = 0.0, 1e-30, 1e30
  interval = metrics.Interval()
  for part in norms.astype(np.float32):
    interval.add(0, {"train/grad_norm": jnp.asarray(part)})
  (counts,) = interval.close(256).fetch_histograms().values()
  inside = np.clip(norms, metrics.EDGES[0], metrics.EDGES[-1])
  expected, _ = np.histogram(inside.astype(np.float32), metrics.EDGES)
  np.testing.assert_array_equal(counts, expected)


def test_an_empty_histogram_can_be_written(tmp_path):
  with tensorboard.TensorBoard(tmp_path) as board:
    board.add_histogram(
      "a", np.zeros(2, np.int32), np.array([1.0, 2.0, 4.0]), 1
    )
  (value,) = [v for event in events(tmp_path) for v in event.summary.value]
  assert value.histo.num == 0


# Python 3.12 warns of the types of JAX's reader; where that is an error, C++
# aborts the process.
@pytest.mark.filterwarnings("ignore:builtin type event_:DeprecationWarning")
@pytest.mark.usefixtures("standard_promotion")
def test_a_run_writes_trace_histograms_and_pictures(dataset, tmp_path):  # noqa: F811
  run = make_run(
    dataset,
    tmp_path / "run",
    lambda step, params: ({}, {"bank": PICTURE}),
    train__steps=24,
    optim__decay_steps=0,
    eval__every=16,
    log__profile="8:16",
  )
  loop.train(run)
  values = {}
  for event in events(tmp_path / "run" / "tensorboard"):
    for value in event.summary.value:
      values.setdefault(value.tag, {})[event.step] = value
  norms = values["train/grad_norm/histogram"]
  assert {step: value.histo.num for step, value in norms.items()} == {
    8: 8, 16: 8, 24: 8,
  }  # fmt: skip
  for step, value in norms.items():
    mean = values["train/grad_norm"][step].simple_value
    assert value.histo.min <= mean <= value.histo.max
    assert sum(value.histo.bucket) == 8
  pictures = values["bank"]
  assert list(pictures) == [16, 24]
  with Image.open(io.BytesIO(pictures[16].image.encoded_image_string)) as image:
    np.testing.assert_array_equal(np.asarray(image), PICTURE)

  (path,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
  trace = jax.profiler.ProfileData.from_file(str(path))
  steps = [
    dict(event.stats)["step_num"]
    for plane in trace.planes
    for line in plane.lines
    for event in line.events
    if event.name == "train"
  ]
  assert sorted(steps) == [8, 10, 12, 14]


@pytest.mark.parametrize("profile", ["5", "5:", "a:b", "7:7", "1:2:3", "-1:4"])
def test_steps_to_trace_are_checked(profile):
  with pytest.raises(ValueError, match=r"config\.log\.profile=.*FIRST:LAST"):
    tiny.make_config(log__profile=profile)


def records_of(path):
  """The records of a run's file that was written offline.

  After a header of seven bytes, LevelDB's log: blocks of 32 KiB, in which a
  part of a record follows its checksum, length and kind.
  """
  from wandb.proto import wandb_internal_pb2

  data, at, whole = path.read_bytes(), 7, b""
  while at < len(data):
    if 32768 - at % 32768 < 7:
      at += 32768 - at % 32768
    length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
    whole += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # A whole record, or its last part.
      yield wandb_internal_pb2.Record.FromString(whole)
      whole = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_numbers_pictures_and_config(tmp_path, monkeypatch):
  pytest.importorskip(
    "wandb", exc_type=ImportError, reason="needs the extra 'wandb'"
  )
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  config = tiny.make_config(log__wandb="gmem")
  board = wandb_board.Board(config, tmp_path)
  writer = metrics.Writer(tmp_path, 0, (), board)
  for step in (8, 16):
    writer.write_scalars(step, {"train/loss": 1 / step})
    writer.write_images(step, {"bank": PICTURE})
  writer.close()
  losses, settings, run = [], {}, None
  (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
  for record in records_of(path):
    if record.HasField("run"):
      run = record.run
      settings |= {u.key: u.value_json for u in run.config.update}
    for item in record.history.item:
      if "train/loss" in (item.key, *item.nested_key):
        losses.append(json.loads(item.value_json))
  assert losses == [1 / 8, 1 / 16]
  assert run.project == "gmem"
  model = resolve.to_json(config)["model"]
  assert json.loads(settings["model"]) == model
  pictures = [*tmp_path.glob("wandb/offline-run-*/files/media/images/bank_*")]
  assert len(pictures) == 2
  for path in pictures:
    np.testing.assert_array_equal(write_images.read_png(path), PICTURE)
  # The same run goes on.
  again = wandb_board.Board(config, tmp_path)
  again.close()
  assert atomic.read_json(tmp_path / wandb_board.RECORD) == {"id": run.run_id}
  assert again._run.id == run.run_id


def test_wandb_is_named_where_it_is_missing(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ModuleNotFoundError, match=r"gmem_jax\[wandb\]"):
    wandb_board.Board(tiny.make_config(log__wandb="gmem"), tmp_path)
  assert not list(tmp_path.iterdir())
