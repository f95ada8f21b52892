"""Converted weights on disk, and the digests of trees."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gmem_jax.files import weights
from gmem_jax.parallel import sharding
from tests.convert import helpers

TREES = {
  "params": {
    "b": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "a": np.ones(3, ml_dtypes.bfloat16),
  },
  "buffers": {"feat_rope.cos": np.ones((2, 2)), "count": np.array(3)},
}


def _sorted(tree):
  """Neither format keeps the order of names."""
  if isinstance(tree, dict):
    return {key: _sorted(tree[key]) for key in sorted(tree)}
  return tree


@pytest.mark.parametrize("file_format", weights.FORMATS)
def test_round_trip(tmp_path, file_format):
  path = tmp_path / "weights"
  metadata = {"kind": "test", "model": {"width": 3, "flags": [True, None]}}
  weights.save_converted(path, TREES, metadata, file_format)
  for name, tree in TREES.items():
    loaded, read = weights.load_converted(path, name)
    helpers.assert_same(_sorted(loaded), _sorted(tree))
    assert {k: read[k] for k in metadata} == metadata
  assert weights.is_converted(path)
  assert [p.name for p in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("file_format", weights.FORMATS)
def test_an_absent_tree_is_named(tmp_path, file_format):
  path = tmp_path / "weights"
  weights.save_converted(path, TREES, {"kind": "test"}, file_format)
  with pytest.raises(ValueError, match="no 'bank' but params, buffers"):
    weights.load_converted(path, "bank")


@pytest.mark.parametrize("file_format", weights.FORMATS)
def test_nothing_is_overwritten(tmp_path, file_format):
  path = tmp_path / "weights"
  path.write_text("precious")
  with pytest.raises(FileExistsError):
    weights.save_converted(path, TREES, {}, file_format)
  assert path.read_text() == "precious"


def test_other_things_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError):
    weights.load_converted(tmp_path / "absent")
  with pytest.raises(ValueError, match="holds no converted weights"):
    weights.load_converted(tmp_path)
  text = tmp_path / "text"
  text.write_text("some text that is no file of weights")
  with pytest.raises(ValueError, match="holds no converted weights"):
    weights.load_converted(text)
  assert not weights.is_converted(text)
  with pytest.raises(ValueError, match="format 'zarr'"):
    weights.save_converted(tmp_path / "x", TREES, {}, "zarr")


def test_another_version_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(weights, "FORMAT_VERSION", 99)
  weights.save_converted(tmp_path / "x", TREES, {"kind": "test"})
  monkeypatch.undo()
  with pytest.raises(ValueError, match="is of format 99"):
    weights.load_converted(tmp_path / "x")


def test_a_failed_save_leaves_nothing(tmp_path):
  trees = {"params": {"a": np.array(["text"])}}
  with pytest.raises(Exception):  # noqa: B017, PT011 (the library's own)
    weights.save_converted(tmp_path / "x", trees, {}, "safetensors")
  assert not list(tmp_path.iterdir())


DTYPES = ["float32", "bfloat16", "int32", "int8", "uint8", "bool"]


def _array_of(dtype):
  values = np.random.default_rng(0).normal(size=(8, 12)) * 50
  return jnp.asarray(values > 0 if dtype == "bool" else values).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_changes_the_digest(dtype):
  x = _array_of(dtype)
  before = weights.digests({"x": x})["x"]
  raw = np.frombuffer(np.asarray(x).tobytes(), np.uint8).copy()
  bits = range(1) if dtype == "bool" else range(8)
  for byte in range(0, len(raw), 5):
    for bit in bits:
      flipped = raw.copy()
      flipped[byte] ^= 1 << bit
      other = np.frombuffer(flipped.tobytes(), x.dtype).reshape(x.shape)
      assert weights.digests({"x": jnp.asarray(other)})["x"] != before


def test_order_changes_the_digest():
  x = _array_of("float32")
  assert weights.digests({"x": x}) != weights.digests({"x": x[::-1]})


@pytest.mark.multidevice
def test_no_mesh_changes_the_digest():
  x = _array_of("float32")
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 2, 2))
  for spec in (
    P(),
    P("fsdp", "tensor"),
    P(None, "fsdp"),
    P(("fsdp", "tensor")),
  ):
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    assert weights.digests({"x": placed}) == weights.digests({"x": x})


def test_known_digest():
  # 5 * 1 + 6 * (2 * 2654435769 + 1), modulo 2^32.
  x = jnp.array([5, 6], jnp.int32)
  expected = (5 + 6 * (2 * 2654435769 + 1)) % 2**32
  assert weights.digests({"a": {"x": x}}) == {"a/x": expected}
