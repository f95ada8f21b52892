"""A run is loaded at the step that is asked for."""

import jax
import numpy as np
import pytest

import gmem_jax
from gmem_jax.sample import load as load_lib
from tests import tiny


def scaled(state):
  """Another network, whose parameters are not their moving average."""
  state = tiny.loud(state)
  params = jax.tree.map(lambda a: a + np.float32(0.1), state.params)
  ema = jax.tree.map(lambda a: -a, state.ema)
  return state.replace(params=params, ema=ema)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run of two checkpoints."""
  workdir = tmp_path_factory.mktemp("runs") / "digits"
  tiny.save_run(workdir)
  tiny.save_step(workdir, 16, scaled)
  return workdir


def made(generator):
  return generator.sample(rows=[3, 7], per_row=2, seed=0).pixels


def test_each_checkpoint_is_loaded(run):
  assert load_lib.steps(run) == [8, 16]
  newest, first = gmem_jax.load(run), gmem_jax.load(run, step=8)
  assert newest.source.info["step"] == 16
  assert first.source.info["step"] == 8
  assert first.source.name == "step_0000008_ema"
  assert first.sample(rows=[3]).info["network"] == {
    "step": 8, "weights": "ema",
  }  # fmt: skip
  np.testing.assert_array_equal(made(gmem_jax.load(run, step=16)), made(newest))
  assert abs(made(first).astype(int) - made(newest)).mean() > 1


def test_other_weights_are_of_the_same_checkpoint(run):
  params = gmem_jax.load(run, step=8).with_config("sample.weights=params")
  assert params.source.info == {"step": 8, "weights": "params"}
  newest = gmem_jax.load(run).with_config("sample.weights=params")
  assert newest.source.info == {"step": 16, "weights": "params"}


def test_a_step_that_is_not_there_is_named(run):
  with pytest.raises(ValueError, match=r"^step=9: .*has the steps 8, 16$"):
    gmem_jax.load(run, step=9)
  assert load_lib.steps("emoji") == []
  with pytest.raises(ValueError, match=r"^step=8: converted weights have no"):
    gmem_jax.load("emoji", step=8)
