"""Converted weights on disk, and the digests of trees."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gmem_jax.files import weights
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
  model = {"width": 3, "flags": [True, None]}
  metadata = helpers.metadata("test") | {"model": model}
  weights.save_converted(path, TREES, metadata, file_format)
  for name, tree in TREES.items():
    loaded, read = weights.load_converted(path, name)
    helpers.assert_same(_sorted(loaded), _sorted(tree))
    assert {k: read[k] for k in metadata} == metadata
  assert weights.is_converted(path)
  assert [p.name for p in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("file_format", weights.FORMATS)
@pytest.mark.usefixtures("standard_promotion")
def test_small_floats_are_kept_and_can_be_computed_with(tmp_path, file_format):
  """JAX promotes 16-bit floats by itself; 8-bit ones must be widened."""
  dtypes = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
  params = {d: np.array([0.5, -1.75, 3.0]).astype(jnp.dtype(d)) for d in dtypes}
  path = tmp_path / "weights"
  weights.save_converted(
    path, {"params": params}, helpers.metadata("x"), file_format
  )
  helpers.assert_same(_sorted(weights.load_converted(path)[0]), _sorted(params))
  loaded, _ = weights.load_kind(str(path), ("x",))
  for name, array in loaded.items():
    wide = np.float32 if name.startswith("float8") else params[name].dtype
    helpers.assert_same(array, params[name].astype(wide))
    np.asarray(jnp.ones(3) * array)


@pytest.mark.parametrize("file_format", weights.FORMATS)
def test_an_absent_tree_is_named(tmp_path, file_format):
  path = tmp_path / "weights"
  weights.save_converted(path, TREES, helpers.metadata("test"), file_format)
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


def test_cut_weights_are_said_to_be_so(tmp_path):
  path = tmp_path / "x"
  weights.save_converted(path, TREES, helpers.metadata("x"), "safetensors")
  data = path.read_bytes()
  path.write_bytes(data[:-1])
  message = f"cut off: {len(data) - 1:,} bytes of at least {len(data):,}"
  with pytest.raises(ValueError, match=message):
    weights.load_converted(path)


@pytest.mark.parametrize("file_format", weights.FORMATS)
@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("kind", None),
    ("title", ["x"]),
    ("trees", {"params": 1}),
    ("source", "a file"),
    ("step", "late"),
    ("source", {"file": "x", "sha256": 3}),
  ],
)
def test_metadata_of_another_shape_is_named(tmp_path, file_format, key, value):
  path = tmp_path / "x"
  metadata = helpers.metadata("test") | {key: value}
  weights.save_converted(path, TREES, metadata, file_format)
  key = "sha256" if isinstance(value, dict) and key == "source" else key
  with pytest.raises(ValueError, match=rf"metadata of .*x is .*: its '{key}'"):
    weights.load_converted(path)


@pytest.mark.parametrize("names", [["other/a"], ["params/a", "params/a/b"]])
def test_names_that_make_no_tree_are_refused(tmp_path, names):
  path = tmp_path / "x"
  metadata = helpers.metadata("test") | {"format_version": 1}
  text = json.dumps(metadata | {"trees": ["params"]})
  arrays = {name: np.ones(3) for name in names}
  safetensors.numpy.save_file(arrays, path, {"gmem_jax": text})
  with pytest.raises(ValueError, match=r"x is damaged: .* no 'params'"):
    weights.load_converted(path)


@pytest.mark.parametrize("text", ["[" * 5000, "{", '{"format_version": NaN}'])
def test_metadata_that_is_no_json_is_named(tmp_path, text):
  path = tmp_path / "x"
  safetensors.numpy.save_file(
    {"params/a": np.ones(3)}, path, {"gmem_jax": text}
  )
  with pytest.raises(ValueError, match=r"metadata of .*x is damaged"):
    weights.load_converted(path)
  assert not weights.is_converted(path)


def test_another_version_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(weights, "FORMAT_VERSION", 99)
  weights.save_converted(tmp_path / "x", TREES, helpers.metadata("test"))
  monkeypatch.undo()
  with pytest.raises(ValueError, match="is of format 99"):
    weights.load_converted(tmp_path / "x")


def test_two_that_save_at_once_do_not_meet(tmp_path, monkeypatch):
  """One of them is told that the other was faster."""
  save, path = weights.ocp.save_checkpointables, tmp_path / "x"
  others = {"params": {"a": np.full(3, 7.0)}}

  def meanwhile(*args):
    monkeypatch.undo()
    save(*args)
    weights.save_converted(path, others, helpers.metadata("second"))

  monkeypatch.setattr(weights.ocp, "save_checkpointables", meanwhile)
  with pytest.raises(OSError, match="x"):
    weights.save_converted(path, TREES, helpers.metadata("first"))
  assert list(tmp_path.iterdir()) == [path]
  params, metadata = weights.load_converted(path)
  np.testing.assert_array_equal(params["a"], np.full(3, 7.0))
  assert metadata["title"] == helpers.metadata("second")["title"]


def test_a_failed_save_leaves_nothing(tmp_path):
  trees = {"params": {"a": np.array(["text"])}}
  with pytest.raises(Exception):  # noqa: B017, PT011 (the library's own)
    weights.save_converted(tmp_path / "x", trees, {}, "safetensors")
  assert not list(tmp_path.iterdir())
