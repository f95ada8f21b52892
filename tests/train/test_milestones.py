"""When a run first reached a score."""

import dataclasses
import json

import pytest

from gmem_jax.commands import runs, train as train_command
from gmem_jax.config import thresholds
from gmem_jax.parallel import sharding
from gmem_jax.train import dataset as dataset_lib, loop, milestones
from tests import tiny
from tests.train.test_loop import make_run

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def dataset():
  return dataset_lib.load(tiny.make_config())


def records(*scores, name="eval/frechet"):
  """Of evaluations every 10 steps, with the losses between."""
  found = []
  for i, score in enumerate(scores, 1):
    found += [
      {"step": 10 * i, "train/loss": 0.1},
      {"step": 10 * i, name: score},
    ]
  return found


@pytest.mark.parametrize(
  ("text", "score", "reached"),
  [
    ("fid<=5", 5.0, True),
    ("fid<=5", 5.1, False),
    (" recall >= 6e-1", 0.6, True),
    ("recall>=0.6", 0.5, False),
    ("fid<=5", float("nan"), False),
  ],
)
def test_a_threshold_is_read(text, score, reached):
  threshold = thresholds.parse(text)
  assert threshold.is_reached(score) == reached
  assert thresholds.parse(str(threshold)) == threshold


@pytest.mark.parametrize(
  "text", ["", "fid", "fid<5", "fid<=", "<=5", "fid<=x", "fid<=nan", "fid<=inf"]
)
def test_what_is_no_threshold_is_refused(text):
  with pytest.raises(ValueError, match=r"config\.eval\.thresholds: .* is none"):
    tiny.make_config(eval__thresholds=(text,))


def test_the_first_evaluation_that_is_as_good_counts():
  falling = thresholds.parse("frechet<=2")
  # It gets worse again; that changes nothing.
  found = milestones.first(records(5.0, 2.5, 2.0, 3.0, 1.0), falling, 64, 1000)
  assert found == (30, 1920, 1.92)
  assert milestones.first(records(5.0, 2.1), falling, 64, 1000) is None
  rising = thresholds.parse("recall>=0.5")
  ups = records(0.2, 0.7, name="eval/recall")
  assert milestones.first(ups, rising, 64, 1000).steps == 20
  assert milestones.first(ups, falling, 64, 1000) is None


def test_the_table_says_when():
  config = tiny.make_config(eval__thresholds=("frechet<=2", "frechet<=0.1"))
  batch = config.train.batch_size
  text = milestones.table(
    config, 100, {"memory": records(5.0, 1.5), "no memory": records(5.0)}
  )
  head, *lines = text.splitlines()
  assert f"({config.eval.count} samples)" in head
  assert [line.split("  ")[1] for line in lines] == [
    "frechet<=2, memory", "frechet<=2, no memory",
    "frechet<=0.1, memory", "frechet<=0.1, no memory",
  ]  # fmt: skip
  assert f"{20 * batch / 100:.2f} epochs" in lines[0]
  assert f"20 steps {20 * batch:13,} images" in lines[0]
  assert all(line.endswith("not reached") for line in lines[1:])
  config = tiny.make_config(eval__thresholds=())
  assert milestones.table(config, 100, {"memory": records(5.0)}) == ""


def test_a_score_that_is_not_measured_is_refused():
  config = tiny.make_config(eval__thresholds=("fid<=2",))
  mesh = sharding.make_mesh(config.mesh)
  with pytest.raises(ValueError, match="fid<=2 is of none of the scores"):
    runs.make_evaluator(config, mesh, (8, 8, 1), None)
  config = tiny.make_config(eval__thresholds=("frechet<=2",), eval__scores=())
  with pytest.raises(ValueError, match=r"config\.eval\.scores is empty"):
    runs.make_evaluator(config, mesh, (8, 8, 1), None)


def test_training_tells_each_threshold_once(dataset, tmp_path):
  """Also where it goes on after a stop."""
  scores = {8: 3.0, 16: 1.5, 24: 1.8, 32: 0.4}

  def evaluate(step, params):
    return {"frechet": scores[step]}, {}

  for steps in (16, 32):
    run = make_run(
      dataset, tmp_path / "run", evaluate, train__steps=steps, eval__every=8,
      eval__thresholds=("frechet<=2", "frechet<=0.5", "frechet<=0.1"),
    )  # fmt: skip
    telling = milestones.telling(
      evaluate, run.config, run.workdir, len(dataset.train.records)
    )
    loop.train(dataclasses.replace(run, evaluate=telling))
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  told = {
    (record["step"], name): value
    for record in map(json.loads, lines)
    for name, value in record.items()
    if "until" in name
  }
  batch, size = run.config.train.batch_size, len(dataset.train.records)
  assert told == {
    (step, f"eval/until_frechet_{value}/{unit}"): number
    for step, value in ((16, "2"), (32, "0.5"))
    for unit, number in (
      ("steps", step),
      ("images", step * batch),
      ("epochs", step * batch / size),
    )
  }
  train_command._report_thresholds(run.config, tmp_path / "run", size)
  text = (tmp_path / "run" / "report.txt").read_text()
  assert "16 steps" in text
  assert "32 steps" in text
  assert text.count("not reached") == 1
