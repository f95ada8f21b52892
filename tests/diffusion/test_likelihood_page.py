"""The code of docs/likelihood_and_inversion.md, run on a small run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.config import recipe, resolve
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  checkpoint,
  dataset as dataset_lib,
  directory as directory_lib,
  setup,
)
from tests import layout, tiny

SMALLER = f"""
_get_config = get_config


def get_config():
  tree = _get_config()
  tree.update_from_flattened_dict({tiny.CHANGES!r})
  return tree
"""


def _make_run(workdir):
  """A checkpoint whose network predicts something: its last layer is not 0."""
  config = resolve.resolve(recipe.load("configs/digits.py"))
  memory = setup.make_memory(
    config, dataset_lib.load(config), sharding.make_mesh(config.mesh)
  )
  directory_lib.claim(config, workdir)
  setup.save_memory(workdir / "memory", memory)
  random = np.random.default_rng(0)
  state = jax.jit(setup.make_init(config, memory))()
  params = jax.tree.map(
    lambda x: x + 0.1 * random.standard_normal(x.shape).astype(np.float32),
    jax.device_get(state.params),
  )
  state = jax.tree.map(jnp.asarray, state.replace(params=params, ema=params))
  with checkpoint.opened(workdir / "checkpoints", config.checkpoint) as kept:
    kept.save(8, state, {"train_seconds": 1.0})


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
  text = (layout.ROOT / "configs/digits.py").read_text()
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/digits.py").write_text(text + SMALLER)
  monkeypatch.chdir(tmp_path)
  _make_run(tmp_path / "runs/digits")

  page = layout.ROOT / "docs/likelihood_and_inversion.md"
  blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
  assert len(blocks) == 4
  names: dict = {}
  for block in blocks:
    exec(compile(block, page.name, "exec"), names)

  assert names["bits_per_dim"].shape == (4,)
  assert np.isfinite(names["bits_per_dim"]).all()
  np.testing.assert_allclose(names["noise"], names["x0"], atol=0.05)
  np.testing.assert_allclose(names["again"], names["x1"], atol=0.05)
  # The network moves the noise, so the round trip is more than the identity.
  assert np.abs(names["x0"] - names["x1"]).max() > 0.5
  steps = names["ode"].steps
  assert names["states"].shape == (steps, *names["x1"].shape)
  np.testing.assert_allclose(names["states"][-1], names["x1"], atol=0.05)
  assert names["decoded"].shape == names["images"].shape
