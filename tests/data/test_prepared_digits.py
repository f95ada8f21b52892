"""Digits through the writer, and back through the loader, bit for bit."""

import ml_dtypes
import numpy as np
import pytest

from gmem_jax.data import (
  encode,
  pipeline,
  prepare,
  schema as schema_lib,
  sources,
  store,
)
from gmem_jax.models.encoders import protocols, random_conv

IMAGES = 40
WIDTH = random_conv.WIDTH


@pytest.fixture(scope="module")
def digits():
  return sources.digits().take(np.arange(IMAGES), "digits/first")


@pytest.fixture(scope="module")
def networks():
  return encode.Encoders(
    protocols.IdentityTokenizer(),
    random_conv.make(0, 1),
    latents="sample",
    tokens="int8",
    mirrored=True,
    seed=0,
    device_batch=4,
  )


@pytest.fixture(scope="module")
def reader(digits, networks, tmp_path_factory):
  schema = schema_lib.Schema(
    version=schema_lib.VERSION,
    latents="sample",
    tokens="int8",
    mirrored=True,
    latent_shape=(8, 8, 1),
    token_shape=networks.token_shape((8, 8, 1)),
    feature_width=WIDTH,
    image_shape=(8, 8, 1),
    images=IMAGES,
    shard_size=15,
    tokenizer={"name": "identity"},
    features={"name": networks.encoder_name},
    source=digits.info(),
    seed=0,
  )
  directory = tmp_path_factory.mktemp("digits") / "d"
  prepare.write_store(directory, schema, digits, networks)
  return store.PreparedRecords(store.open_store(directory))


@pytest.fixture(scope="module")
def encoded(digits, networks):
  """What the networks make of all images, in the writer's batches."""
  parts, size = [], networks.batch_size
  for first in (
    *range(0, 15, size),
    *range(15, 30, size),
    *range(30, 40, size),
  ):
    end = min(first + size, next(e for e in (15, 30, 40) if first < e))
    numbers = np.arange(first, end, dtype=np.int32)
    found = networks(digits.pixels[first:end], numbers)
    parts.append({n: np.asarray(a)[: len(numbers)] for n, a in found.items()})
  return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def test_batches_are_what_the_networks_made(reader, encoded, digits):
  assert len(reader) == IMAGES
  dataset = pipeline.make_dataset(
    reader,
    fields=tuple(reader.spec()),
    seed=0,
    mirror_seed=1,
    batch_size=8,
    steps_per_dispatch=5,
    process_index=0,
    process_count=1,
  )
  batch = {n: a.reshape(IMAGES, *a.shape[2:]) for n, a in dataset[0].items()}
  rows = batch["row"]
  assert sorted(rows) == list(range(IMAGES))
  np.testing.assert_array_equal(batch["label"], digits.labels[rows])
  views = np.zeros(IMAGES, bool)
  for i, row in enumerate(rows):
    found = [
      view
      for view in (0, 1)
      if batch["latent"][i].tobytes() == encoded["latent"][row, view].tobytes()
    ]
    assert found, f"the latent of image {row} is none of its views"
    views[i] = found[0]
    for name in ("tokens", "token_scales", "feature"):
      ours, theirs = batch[name][i], encoded[name][row, found[0]]
      assert ours.dtype == theirs.dtype
      assert ours.tobytes() == theirs.tobytes(), (row, name)
  assert 0 < views.sum() < IMAGES
  assert batch["latent"].dtype == ml_dtypes.bfloat16


def test_the_bank_is_row_aligned(reader, encoded):
  rows = reader.store.bank_rows()
  np.testing.assert_array_equal(rows, encoded["row"])
  asis = schema_lib.Flips(False, False, False)
  for index in range(IMAGES):
    record = reader.read(index, asis)
    feature = rows[record["row"]].astype(ml_dtypes.bfloat16)
    assert feature.tobytes() == record["feature"].tobytes()
