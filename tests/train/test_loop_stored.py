"""Training on stored data: the published shards with the whole loss."""

import jax
import numpy as np
import pytest

from gmem_jax.parallel import sharding
from gmem_jax.train import (
  dataset as dataset_lib,
  loop,
  metrics,
  run as run_lib,
  setup,
)
from tests import tiny
from tests.data import test_upstream

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shards")
  for i, name in enumerate(
    ("latents_rank00_shard000", "latents_rank01_shard000")
  ):
    test_upstream.make_shard(folder / f"{name}.safetensors", 20, i)
  return folder


def make_run(shards, workdir, **changes):
  config = tiny.make_config(
    **{
      "data__source": "upstream",
      "data__path": str(shards),
      "data__holdout": 0,
      "data__mirror": True,
      "data__tokens": "bf16",
      "loss__projection_weight": 0.5,
      "model__projector_width": 32,
      "train__steps": 16,
      "checkpoint__every": 8,
      **changes,
    }
  )
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
  dataset = dataset_lib.load(config)
  memory = setup.make_memory(config, dataset, mesh)
  workdir.mkdir(exist_ok=True)
  return tiny.make_run(config, workdir, mesh, dataset, memory, None)


def test_published_shards_train_and_continue_exactly(shards, tmp_path):
  whole = loop.train(make_run(shards, tmp_path / "whole"))
  assert "projector" in whole.params
  loop.train(make_run(shards, tmp_path / "run", train__steps=8))
  halves = loop.train(make_run(shards, tmp_path / "run"))
  jax.tree.map(np.testing.assert_array_equal, whole, halves)
  logged = metrics.read_jsonl(tmp_path / "whole" / "metrics.jsonl")
  assert all(-1 <= r["train/projection"] <= 1 for r in logged)
  assert [r["step"] for r in logged] == [8, 16]


def test_flips_are_shared_or_as_published(shards, tmp_path):
  """What reaches the step, by the three parts of an example."""
  arrays = test_upstream.make_shard(tmp_path / "x" / "a.safetensors", 20, 0)
  run = make_run(tmp_path / "x", tmp_path / "run")
  agree = []
  for independent in (False, True):
    config = tiny.make_config(
      data__source="upstream",
      data__path=str(tmp_path / "x"),
      data__holdout=0,
      data__mirror=True,
      data__independent_flips=independent,
      loss__projection_weight=0.5,
    )
    dataset = run_lib.make_dataset(
      tiny.make_run(
        config, run.workdir, run.mesh, run.dataset, run.memory, None
      )
    )
    views = []
    for j in range(8):
      batch = {n: a.reshape(-1, *a.shape[2:]) for n, a in dataset[j].items()}
      assert "label" not in batch
      for i, row in enumerate(batch["row"]):
        latent = np.moveaxis(batch["latent"][i], -1, 0)
        views.append(
          [
            (latent != arrays["latents"][row]).any(),
            (batch["tokens"][i] != arrays["representations"][row]).any(),
            (batch["feature"][i] != arrays["cls_tokens"][row]).any(),
          ]
        )
    views = np.array(views)
    assert 0.4 < views.mean() < 0.6
    agree.append((views == views[:, :1]).all(axis=1).mean())
  assert agree[0] == 1
  assert agree[1] < 0.4  # one in four
