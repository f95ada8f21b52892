"""The loop's contract, in process; tests/test_main.py kills real ones."""

import os
import signal

import jax
import numpy as np
import pytest

from gmem_jax.files import weights
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  checkpoint,
  dataset as dataset_lib,
  loop,
  metrics,
  setup,
  state as train_state,
)
from tests import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def dataset():
  return dataset_lib.load(tiny.make_config())


def make_run(dataset, workdir, evaluate=None, **changes):
  config = tiny.make_config(
    **{"train__steps": 32, "checkpoint__keep_latest": 9, **changes}
  )
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
  memory = setup.make_memory(config, dataset, mesh)
  workdir.mkdir(exist_ok=True)
  return tiny.make_run(config, workdir, mesh, dataset, memory, evaluate)


def ema_at(run, step):
  path = run.workdir / "checkpoints" / str(step)
  return weights.load_tree(path, None)[0]["ema"]


def test_evaluation_and_checkpoint_describe_the_same_state(dataset, tmp_path):
  seen, written = {}, {}

  def evaluate(step, params):
    seen[step] = jax.device_get(params)
    records = metrics.read_jsonl(tmp_path / "run" / "metrics.jsonl")
    written[step] = [r["step"] for r in records if "train/loss" in r]
    return {"x": float(step)}, {}

  run = make_run(dataset, tmp_path / "run", evaluate, eval__every=16)
  state = loop.train(run)
  assert list(seen) == [16, 32]
  for step, params in seen.items():
    # Its metrics were found finite and are on disk before.
    assert written[step][-1] == step
    jax.tree.map(np.testing.assert_array_equal, params, ema_at(run, step))
  jax.tree.map(
    np.testing.assert_array_equal, seen[32], jax.device_get(state.ema)
  )
  records = metrics.read_jsonl(tmp_path / "run" / "metrics.jsonl")
  assert [r["eval/x"] for r in records if "eval/x" in r] == [16.0, 32.0]


def test_a_finished_run_does_nothing(dataset, tmp_path):
  run = make_run(dataset, tmp_path / "run")
  first = loop.train(run)
  before = (tmp_path / "run" / "metrics.jsonl").read_text()
  again = loop.train(run)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_in_the_last_evaluation_keeps_what_follows_from_starting(
  dataset, tmp_path, name
):
  def evaluate(step, params):
    del params
    if step == 16:
      signal.raise_signal(signal.Signals[name])
    return {}, {}

  run = make_run(dataset, tmp_path / "run", evaluate, train__steps=16)
  with pytest.raises(loop.Preempted, match=f"by {name} at step 16; the state"):
    loop.train(run)
  assert "16" in os.listdir(tmp_path / "run" / "checkpoints")


def test_sigterm_saves_at_the_next_dispatch(dataset, tmp_path):
  def evaluate(step, params):
    del params
    if step == 16:
      os.kill(os.getpid(), signal.SIGTERM)
    return {}, {}

  run = make_run(
    dataset, tmp_path / "run", evaluate, eval__every=8, checkpoint__every=32
  )
  with pytest.raises(loop.Preempted, match="step 18"):
    loop.train(run)
  assert os.listdir(tmp_path / "run" / "checkpoints") == ["18"]
  interrupted = loop.train(run)
  whole = loop.train(make_run(dataset, tmp_path / "whole"))
  jax.tree.map(np.testing.assert_array_equal, interrupted, whole)


def test_a_longer_run_continues_a_shorter_one(dataset, tmp_path):
  loop.train(make_run(dataset, tmp_path / "run", train__steps=16))
  longer = loop.train(make_run(dataset, tmp_path / "run", train__steps=32))
  whole = loop.train(make_run(dataset, tmp_path / "whole", train__steps=32))
  jax.tree.map(np.testing.assert_array_equal, longer, whole)


def test_a_run_goes_on_with_another_rate_and_batch(dataset, tmp_path):
  first = jax.device_get(
    loop.train(make_run(dataset, tmp_path / "run", train__steps=16))
  )
  run = make_run(
    dataset,
    tmp_path / "run",
    train__steps=24,
    train__batch_size=8,
    optim__learning_rate=1e-3,
    optim__schedule="constant",
    optim__warmup_steps=0,
  )
  with checkpoint.opened(
    run.workdir / "checkpoints", run.config.checkpoint
  ) as checkpoints:
    restored, _ = loop.restore_or_init(run, checkpoints)
  # Step, parameters, average and the optimizer's moments.
  jax.tree.map(np.testing.assert_array_equal, restored, first)
  state = loop.train(run)
  assert int(state.step) == 24
  assert {int(x) for x in jax.tree.leaves(state.opt_state) if not x.ndim} == {
    24
  }
  records = metrics.read_jsonl(run.workdir / "metrics.jsonl")
  assert [r["step"] for r in records] == [8, 16, 24]
  last = records[-1]
  assert last["perf/images_per_s"] == pytest.approx(
    8 * last["perf/steps_per_s"]
  )
  assert last["train/learning_rate"] == pytest.approx(1e-3)
  assert last["train/loss"] < records[0]["train/loss"]


def test_the_learning_rate_is_a_metric(dataset, tmp_path):
  run = make_run(dataset, tmp_path / "run")
  loop.train(run)
  schedule = train_state.learning_rate(run.config.optim)
  for r in metrics.read_jsonl(run.workdir / "metrics.jsonl"):
    # That of the step itself; step 1 has the schedule's first.
    expected = float(schedule(r["step"] - 1))
    assert r["train/learning_rate"] == pytest.approx(expected, rel=1e-6)


def test_dispatches_that_miss_the_step_are_refused(dataset, tmp_path):
  loop.train(make_run(dataset, tmp_path / "run", train__steps=16))
  run = make_run(
    dataset,
    tmp_path / "run",
    train__steps=36,
    train__steps_per_dispatch=12,
    train__log_every=12,
    checkpoint__every=12,
    eval__every=12,
  )
  with pytest.raises(ValueError, match=r"steps_per_dispatch=12.*16"):
    loop.train(run)


def test_not_a_number_is_never_saved(dataset, tmp_path):
  bad = dataset.train.records.fields["latent"].copy()
  bad[:] = np.nan
  run = make_run(dataset, tmp_path / "run", train__steps=16)
  loop.train(run)
  fields = dict(dataset.train.records.fields, latent=bad)
  records = type(dataset.train.records)(fields)
  import dataclasses

  poisoned = dataclasses.replace(
    dataset, train=dataclasses.replace(dataset.train, records=records)
  )
  run = make_run(poisoned, tmp_path / "run", train__steps=32)
  with pytest.raises(metrics.NonFiniteError, match="step 17 "):
    loop.train(run)
  assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["16", "8"]


def test_perf_metrics_are_written(dataset, tmp_path):
  loop.train(make_run(dataset, tmp_path / "run"))
  records = metrics.read_jsonl(tmp_path / "run" / "metrics.jsonl")
  assert [r["step"] for r in records] == [8, 16, 24, 32]
  seconds = [r["perf/train_seconds"] for r in records]
  assert seconds == sorted(seconds)
  for r in records:
    assert r["perf/images_per_s"] == pytest.approx(16 * r["perf/steps_per_s"])
