"""Prepared data, read back."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest

from gmem_jax.data import pipeline, schema, store
from gmem_jax.files import atomic
from tests.data import prepared

TOKENS = ("bf16", "int8", "pixels", "none")
FLIPS = [schema.Flips(*c) for c in itertools.product((False, True), repeat=3)]


def opened(directory: pathlib.Path) -> store.PreparedRecords:
  return store.PreparedRecords(store.open_store(directory))


def bits(array):
  return np.asarray(array).tobytes()


@pytest.mark.parametrize("latents", ["posterior", "sample"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_records_are_read_back_bitwise(tmp_path, tokens, latents):
  written = prepared.write(tmp_path / "d", tokens=tokens, latents=latents)
  found = opened(tmp_path / "d")
  assert len(found) == prepared.SCHEMA.images - 1
  spec = found.spec()
  assert len(written) == len(found)
  for index, flips in itertools.product(range(len(found)), FLIPS):
    record = found.read(index, flips)
    assert record.keys() == spec.keys()
    for name, value in record.items():
      assert (value.shape, value.dtype) == spec[name], name
    assert record["row"] == index
    for name in record.keys() - {"row", "mirrored"}:
      mirrored = {
        "tokens": flips.tokens,
        "token_scales": flips.tokens,
        "feature": flips.feature,
      }.get(name, flips.latent)
      expected = written[index][name]
      if name not in ("pixels", "label"):
        expected = expected[int(mirrored)]
      assert bits(record[name]) == bits(expected), (name, flips)
    if tokens == "pixels":
      assert record["mirrored"] == flips.tokens


def test_arrays_are_views_of_what_was_read(tmp_path):
  prepared.write(tmp_path / "d")
  record = opened(tmp_path / "d").read(0, FLIPS[0])
  for name in ("tokens", "mean", "logvar", "feature"):
    assert not record[name].flags.owndata
    assert not record[name].flags.writeable


def test_without_mirror_images(tmp_path):
  prepared.write(tmp_path / "d", mirrored=False)
  found = opened(tmp_path / "d")
  assert not found.mirrored
  assert found.store.schema.records_per_image == 1
  assert len(found) == 22


def test_damaged_record_names_its_file(tmp_path):
  prepared.write(tmp_path / "d")
  found = opened(tmp_path / "d")
  path = found.store.shards[1].path
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 64] = bytes(64)
  path.write_bytes(data)
  found = opened(tmp_path / "d")  # The size is still right.
  everything = itertools.product(range(len(found)), FLIPS)
  with pytest.raises(ValueError, match=f"{path.name}: record"):
    _ = [found.read(index, flips) for index, flips in everything]


@pytest.mark.parametrize("value", [[{}], ["x"], [[1.0], [1.0, 2.0]]])
def test_statistics_that_are_no_numbers_are_named(tmp_path, value):
  prepared.write(tmp_path / "d")
  path = tmp_path / "d" / store.STATISTICS
  atomic.write_json(path, atomic.read_json(path) | {"mean": value})
  with pytest.raises(ValueError, match=r"statistics\.json is damaged"):
    opened(tmp_path / "d")


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("shard_size", [0, 1]),
    ("shard_size", 0),
    ("images", -1),
    ("images", "x"),
    ("seed", None),
    ("tokens", []),
    ("latent_shape", 3),
    ("mirrored", 1),
  ],
)
def test_a_schema_of_other_values_is_named(tmp_path, key, value):
  prepared.write(tmp_path / "d")
  path = tmp_path / "d" / schema.FILE
  atomic.write_json(path, atomic.read_json(path) | {key: value})
  with pytest.raises(
    ValueError, match=rf"damaged: (its '{key}' is|.* in shards of)"
  ):
    opened(tmp_path / "d")


def test_cut_or_missing_shard_is_named(tmp_path):
  prepared.write(tmp_path / "d")
  path = opened(tmp_path / "d").store.shards[2].path
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=path.name):
    opened(tmp_path / "d")
  path.unlink()
  with pytest.raises(ValueError, match=f"{path.name} is missing"):
    opened(tmp_path / "d")


def test_shards_of_another_schema(tmp_path):
  prepared.write(tmp_path / "a")
  prepared.write(tmp_path / "b", token_shape=(16, 7))
  other = (tmp_path / "b" / schema.FILE).read_text()
  (tmp_path / "a" / schema.FILE).write_text(other)
  with pytest.raises(ValueError, match="another schema"):
    opened(tmp_path / "a")


def test_a_record_of_another_length_is_no_image(tmp_path):
  """Should a shard ever lie about what it holds."""
  prepared.write(tmp_path / "d")
  found = store.open_store(tmp_path / "d")
  other = dataclasses.replace(found.schema, token_shape=(16, 7))
  with pytest.raises(ValueError, match="another schema"):
    store.PreparedRecords(dataclasses.replace(found, schema=other))
  with pytest.raises(ValueError, match="holds no images"):
    store.PreparedRecords(dataclasses.replace(found, shards=()))


def test_every_reader_keeps_the_interface(tmp_path):
  prepared.write(tmp_path / "d")
  fields = {
    "latent": np.zeros((3, 2, 2, 1), np.float32),
    "row": np.arange(3, dtype=np.int32),
    "label": np.zeros(3, np.int32),
  }
  for reader in (opened(tmp_path / "d"), pipeline.InMemoryRecords(fields)):
    assert isinstance(reader, pipeline.Records)
