"""Training from Python."""

import pytest

import gmem_jax
from gmem_jax.train import metrics
from tests import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion")
CHANGES = {"eval__every": 0, "eval__scores": (), "optim__decay_steps": 0}


def test_callbacks_are_told_what_is_written(tmp_path):
  told: list[dict] = []

  def tell(step, values):
    told.append({"step": step, **values})

  config = tiny.make_config(train__steps=8, **CHANGES)
  gmem_jax.fit(config, str(tmp_path), callbacks=[tell])
  assert told == metrics.read_jsonl(tmp_path / "metrics.jsonl")
  assert "train/loss" in told[0]

  # The same call goes on, and what a callback raises ends it.
  def stop(step, values):
    raise KeyboardInterrupt

  longer = tiny.make_config(train__steps=32, **CHANGES)
  with pytest.raises(KeyboardInterrupt):
    gmem_jax.fit(longer, tmp_path, callbacks=[stop])
  gmem_jax.fit(longer, tmp_path, callbacks=[tell])
  steps = [record["step"] for record in told]
  assert steps == sorted(steps)
  assert steps[-1] == 32
  assert gmem_jax.load(tmp_path).source.info["step"] == 32
