"""The way of ImageNet from a folder of photographs to samples, end to end."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from gmem_jax.commands import (
  bank as bank_command,
  prepare as prepare_command,
  sample as sample_command,
  train as train_command,
)
from gmem_jax.config import sections
from gmem_jax.data import schema as schema_lib, store
from gmem_jax.train import dataset as dataset_lib, metrics
from tests import small_networks

pytest.importorskip("sklearn", reason="the photographs are scikit-learn's")
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """Two photographs and the frozen networks."""
  base = tmp_path_factory.mktemp("walkthrough")
  assert small_networks.write_photos(base / "photos") == 8
  small_networks.write_networks(base / "weights", 0)
  return base


def make_config(base, **changes) -> sections.Config:
  values = {
    "data.path": str(base / "photos"),
    "data.prepared": str(base / "prepared"),
    "data.shard_size": 3,
    "data.device_batch": 1,
    "encoder.tokenizer_weights": str(base / "weights" / "vae"),
    "encoder.features_weights": str(base / "weights" / "dinov2"),
    "train.steps": 4,
    "train.batch_size": 4,
    "train.log_every": 2,
    "checkpoint.every": 2,
    "sampler.method": "ode_euler",  # compiles faster
    "sampler.steps": 2,
    "sample.count": 4,
    "sample.batch_size": 4,
    "sample.device_batch": 1,
    "sample.grid": 4,
    "eval.grid": 4,
  }
  return small_networks.make_config(
    values | {k.replace("__", "."): v for k, v in changes.items()}
  )


@pytest.fixture(scope="module")
def prepared(base):
  prepare_command.prepare_mode(make_config(base))
  return store.open_store(base / "prepared")


def test_photographs_become_records_and_a_bank(base, prepared):
  assert prepared.images == 8
  assert prepared.schema.latent_shape == (16, 16, 4)
  assert prepared.schema.token_shape == (256, 64)
  assert [shard.images for shard in prepared.shards] == [3, 3, 2]
  report = json.loads((base / "prepared" / "report.json").read_text())
  assert report["skipped"] == []
  assert report["bank"] == prepared.info.digest
  data = dataset_lib.load(make_config(base))
  flips = schema_lib.Flips(latent=False, tokens=False, feature=False)
  record = data.train.records.read(5, flips)
  row = np.asarray(prepared.bank_rows()[5])
  np.testing.assert_allclose(
    np.float32(record["feature"]), row, rtol=2**-8, atol=1e-30
  )
  # Different photographs, different memories; corners of one are nearer.
  assert int(record["label"]) == 1
  assert len(np.unique(prepared.bank_rows().round(3), axis=0)) == 8


def test_the_end_says_where_the_data_are(base, prepared, capsys):
  del prepared
  prepare_command.prepare_mode(make_config(base))
  first, *_, last = capsys.readouterr().out.splitlines()
  directory = base / "prepared"
  assert first == f"Prepared data: {directory}"
  assert f"Next: python -m gmem_jax.bank info {directory}; " in last
  assert bank_command.main(["info", str(directory)]) == 0
  assert f"8 named, in {base}/photos" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(base, prepared):
  del prepared
  with jax.numpy_dtype_promotion("standard"):
    train_command.train_mode(make_config(base), base / "run")
  return base / "run"


def test_training_takes_the_full_loss(trained):
  lines = metrics.read_jsonl(trained / "metrics.jsonl")
  losses = [line for line in lines if "train/loss" in line]
  assert losses[-1]["step"] == 4
  for name in ("train/loss", "train/projection"):
    assert np.isfinite(losses[-1][name])
  assert (trained / "samples" / "bank_0000004.png").exists()


def test_run_keeps_the_statistics_of_its_data(trained, prepared):
  from gmem_jax.parallel import sharding
  from gmem_jax.train import setup

  mesh = sharding.make_mesh(make_config(trained.parent).mesh)
  memory = setup.load_memory(trained / "memory", mesh)
  np.testing.assert_array_equal(memory.stats.mean, prepared.mean)
  np.testing.assert_array_equal(memory.stats.std, prepared.std)
  assert memory.info == prepared.info


def test_run_samples_from_its_bank_and_like_an_image(base, trained):
  config = make_config(base)
  sample_command.sample_mode(config, trained, [], [])
  # An image that the bank does not know.
  image = base / "unknown.png"
  array = np.random.default_rng(0).integers(0, 255, (300, 280, 3), np.uint8)
  Image.fromarray(array).save(image)
  sample_command.sample_mode(config, trained, [str(image)], [])
  folders = sorted((trained / "images").iterdir())
  assert len(folders) == 2
  for folder in folders:
    with Image.open(folder / "000003.png") as sample:
      assert sample.size == (256, 256)


def test_data_of_other_settings_are_refused(base, prepared):
  del prepared
  for key, value in (
    ("data.tokens", "int8"),
    ("data.latents", "sample"),
    ("encoder.image_size", 512),
  ):
    with pytest.raises(ValueError, match=f"prepared otherwise:\n.*{key}"):
      dataset_lib.load(make_config(base, **{key: value}))


def test_data_of_another_tokenizer_are_refused(base, prepared):
  del prepared
  small_networks.write_networks(base / "others", 1)
  weights = str(base / "others" / "vae")
  with pytest.raises(ValueError, match=r"prepared otherwise:\n.*random-1"):
    dataset_lib.load(make_config(base, encoder__tokenizer_weights=weights))
  with pytest.raises(ValueError, match=r"holds other data:\n.*random-1"):
    prepare_command.prepare_mode(
      make_config(base, encoder__tokenizer_weights=weights)
    )


@pytest.mark.slow
def test_pixels_give_the_same_training(base, trained):
  """Tokens made inside of the step are those that would have been stored."""
  config = make_config(
    base,
    data__tokens="pixels",
    data__prepared=str(base / "prepared_pixels"),
    train__steps=2,
  )
  prepare_command.prepare_mode(config)
  with jax.numpy_dtype_promotion("standard"):
    train_command.train_mode(config, base / "run_pixels")
  ours, theirs = (
    next(
      line
      for line in metrics.read_jsonl(workdir / "metrics.jsonl")
      if "train/loss" in line
    )
    for workdir in (base / "run_pixels", trained)
  )
  for name in ("train/loss", "train/projection"):
    np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3)
