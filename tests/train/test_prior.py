"""A prior on a small bank: it learns its rows, and continues bit for bit."""

import dataclasses
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from gmem_jax.bank import bank as bank_lib, files as bank_files
from gmem_jax.parallel import processes
from gmem_jax.sample import prior as sample_prior
from gmem_jax.train import loop, metrics, prior, prior_rows
from tests import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion")

CLASSES = ("left",) * 300 + ("right",) * 100


def make_rows(seed: int = 0) -> np.ndarray:
  """Two groups of directions, each spread along three of eight coordinates."""
  random = np.random.default_rng(seed)
  rows = np.zeros((400, 8))
  rows[:300, 0], rows[300:, 1] = 1, 1
  rows[:, 2:5] = random.standard_normal((400, 3)) * [0.6, 0.3, 0.1]
  # Of any length: a prior knows their directions alone.
  return (rows * random.uniform(1, 9, (400, 1))).astype(np.float32)


def stored(rows: np.ndarray) -> bank_files.Stored:
  bank = bank_lib.MemoryBank(rows)
  return bank_files.Stored(
    bank, bank_lib.make_info(bank, encoder="", source="toy")
  )


def make_run(workdir: pathlib.Path, rows=None, classes=CLASSES, **changes):
  settings = {"width": 32, "depth": 2, "steps": 32, "batch_size": 16}
  config = tiny.make_config(
    **{f"prior__{key}": value for key, value in settings.items()} | changes
  )
  rows = make_rows() if rows is None else rows
  return prior.make_run(config, workdir, stored(rows), classes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(workdir, its prior), trained for long enough."""
  workdir = tmp_path_factory.mktemp("trained")
  with jax.numpy_dtype_promotion("standard"):
    loop.train(
      make_run(
        workdir,
        prior__width=48,
        prior__steps=800,
        prior__batch_size=128,
        prior__learning_rate=2e-3,
        prior__ema_decay=0.98,
        train__steps_per_dispatch=200,
        train__log_every=200,
        train__steps=200,
        optim__decay_steps=200,
        checkpoint__every=800,
        eval__every=0,
      )
    )
  return workdir, sample_prior.load(workdir, 8)


def units(rows: np.ndarray) -> np.ndarray:
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_loss_falls(trained):
  records = metrics.read_jsonl(trained[0] / "prior" / "metrics.jsonl")
  losses = [each["train/loss"] for each in records]
  # The first is a mean over 200 steps.
  assert losses[-1] < 0.8 * losses[0]


def test_draws_have_the_mean_and_covariance_of_the_rows(trained):
  drawn, rows = trained[1].draw(0, np.arange(4000)), units(make_rows())
  np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-5)
  # Standard errors of a mean are below 0.01; of the rows' own, below 0.025.
  np.testing.assert_allclose(drawn.mean(axis=0), rows.mean(axis=0), atol=0.04)
  np.testing.assert_allclose(np.cov(drawn.T), np.cov(rows.T), atol=0.03)


def test_a_group_has_its_own_memories(trained):
  numbers, rows = np.arange(1000), units(make_rows())
  for name, mine in (("left", rows[:300]), ("right", rows[300:])):
    drawn = trained[1].draw(0, numbers, group=name)
    np.testing.assert_allclose(drawn.mean(axis=0), mine.mean(axis=0), atol=0.06)
  # Of no group, each has the share of its rows.
  left = (trained[1].draw(0, numbers)[:, 0] > 0.4).mean()
  assert 0.65 < left < 0.85


def test_guidance_goes_away_from_the_other_group(trained):
  """Rows of "right" have nothing of the first coordinate; others have much."""
  plain, guided = (
    trained[1].draw(0, np.arange(256), group="right", scale=scale)
    for scale in (1.0, 2.0)
  )
  assert guided[:, 0].mean() < plain[:, 0].mean()
  assert not np.array_equal(plain, guided)


def test_a_draw_depends_on_seed_and_number_alone(trained):
  drawn = trained[1].draw(3, np.arange(200))
  some = np.array([150, 7, 64, 63])
  np.testing.assert_array_equal(trained[1].draw(3, some), drawn[some])
  again = sample_prior.load(trained[0], 8)
  np.testing.assert_array_equal(again.draw(3, some), drawn[some])
  assert not np.array_equal(trained[1].draw(4, some), drawn[some])
  assert len(np.unique(drawn, axis=0)) == 200


def test_a_killed_prior_continues_bit_for_bit(tmp_path, monkeypatch):
  reached, count = processes.StopRequest.reached, 0

  def counted(self):
    nonlocal count
    count += 1
    if count == 5:
      os.kill(os.getpid(), signal.SIGTERM)
    return reached(self)

  with monkeypatch.context() as patch:
    patch.setattr(processes.StopRequest, "reached", counted)
    with pytest.raises(loop.Preempted, match="step 10;"):
      loop.train(make_run(tmp_path / "run"))
  assert os.listdir(tmp_path / "run" / "prior" / "checkpoints") == ["8", "10"]
  halves = loop.train(make_run(tmp_path / "run"))
  whole = loop.train(make_run(tmp_path / "whole"))
  assert int(whole.step) == 32
  jax.tree.map(np.testing.assert_array_equal, halves, whole)


@pytest.mark.parametrize("storage", ["int8", "low rank"])
def test_any_bank_will_do(tmp_path, storage):
  from gmem_jax.bank import edit

  whole = stored(make_rows())
  changed = (
    edit.compress(whole.bank, whole.info, "int8")
    if storage == "int8"
    else edit.compress(whole.bank, whole.info, rank=4)
  )
  config = tiny.make_config(prior__steps=2, prior__batch_size=16)
  run = prior.make_run(
    config, tmp_path, bank_files.edited(whole, changed), CLASSES
  )
  assert int(loop.train(run).step) == 2


def test_statistics_are_of_unit_rows():
  rows = make_rows()
  mean, scale = prior_rows.statistics(bank_lib.MemoryBank(rows))
  expected = units(rows)
  np.testing.assert_allclose(mean, expected.mean(axis=0), atol=1e-6)
  spread = np.sqrt(((expected - expected.mean(axis=0)) ** 2).mean())
  np.testing.assert_allclose(scale, spread, rtol=1e-5)


def test_what_cannot_be_learned_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"the bank has 3 rows: .* at least 16"):
    make_run(tmp_path, make_rows()[:3], CLASSES[:3])
  alike = np.ones((400, 8), np.float32) * np.arange(1, 401)[:, None]
  with pytest.raises(ValueError, match="rows are all alike"):
    make_run(tmp_path, alike.astype(np.float32))
  with pytest.raises(ValueError, match=r"prior.batch_size=6: .* data x fsdp"):
    make_run(tmp_path, prior__batch_size=6)
  assert not (tmp_path / "prior").exists()


def test_a_folder_keeps_to_its_bank_and_config(tmp_path):
  loop.train(make_run(tmp_path, prior__steps=8))
  with pytest.raises(ValueError, match=r"another config or bank:.*bank: "):
    make_run(tmp_path, make_rows(seed=1))
  with pytest.raises(ValueError, match="width: 32 there, 16 now"):
    make_run(tmp_path, prior__width=16)
  # What says how long, and how it samples, may change.
  longer = make_run(tmp_path, prior__steps=10, prior__guidance=2.0)
  assert int(loop.train(longer).step) == 10


def test_rows_without_a_group_count_for_none():
  names, numbers, counts = prior_rows.group(["b", "", "a", "b"], 4)
  assert (names, counts) == (("a", "b"), (1, 2, 1))
  np.testing.assert_array_equal(numbers, [1, 2, 0, 1])
  # One group tells nothing.
  assert prior_rows.group(["a", "a"], 2)[0] == ()
  assert prior_rows.group([], 2)[2] == (2,)


def test_the_config_refuses_what_does_not_fit():
  for change, message in (
    ({"prior__points": 1}, "prior.points=1"),
    ({"prior__width": 0}, "prior.width=0"),
    ({"prior__ema_decay": 1.0}, "prior.ema_decay=1.0"),
    ({"prior__learning_rate": 0.0}, "prior.learning_rate=0.0"),
    (
      {"prior__guidance": 2.0, "prior__group_dropout": 0.0},
      "guidance=2.0: must be 1",
    ),
    ({"sample__group": "3"}, "sample.group='3': must be '' unless"),
    ({"sample__draw": "prior", "sample__bank": "x"}, "sample.bank='x' must"),
    ({"sample__draw": "prior", "sample__rows": (1,)}, r"sample.rows=\(1,\)"),
    (
      {"sample__draw": "prior", "model__conditioning": "cross"},
      "needs config.model.conditioning='adaln', not 'cross'",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      tiny.make_config(**change)


def test_a_config_from_before_there_was_a_prior_means_the_default():
  from gmem_jax.config import resolve, training

  config = tiny.make_config(prior__width=64)
  assert config.prior.width == 64
  tree = resolve.to_json(config)
  del tree["prior"], tree["sample"]["group"]
  assert resolve.resolve(tree).prior == training.PRIOR
  assert dataclasses.asdict(training.PRIOR)["points"] == 33
