"""Small floats, in every format: converted as they are, and back."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gmem_jax.bank import files as bank_files
from gmem_jax.convert import torch_export
from gmem_jax.files import weights
from gmem_jax.files.torch_reader import torch_file
from tests.convert import helpers

DTYPES = {
  "float16": np.float16,
  "bfloat16": ml_dtypes.bfloat16,
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e5m2": ml_dtypes.float8_e5m2,
}


@pytest.mark.golden
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_networks(golden_dir, tmp_path, dtype, form):
  source = golden_dir / "dinov2_tiny.pth"
  state = {
    name: np.ascontiguousarray(tensor.astype(DTYPES[dtype]))
    for name, tensor in torch_file.load(source).items()
  }
  path, out, back = (tmp_path / name for name in ("x", "out", "back.pth"))
  save = safetensors.numpy.save_file if form == "safetensors" else None
  (save or torch_export.save)(state, path)
  # The other format than the file's, so that all four ways are gone.
  options = ["--format=safetensors"] if form == "torch" else []
  options += helpers.settings(source)
  code, said, err = helpers.run(path, out, *options)
  assert code == 0, err
  assert f"of {dtype}" in said
  assert helpers.run(out, back, "--to-torch")[0] == 0
  returned = torch_file.load(back)
  assert returned.keys() == state.keys()
  for name, tensor in state.items():
    helpers.assert_same(returned[name], tensor, name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_banks(tmp_path, dtype):
  rows = np.arange(24).reshape(6, 4).astype(DTYPES[dtype])
  torch_export.save(rows, tmp_path / "bank.pth")
  code, _, err = helpers.run(tmp_path / "bank.pth", tmp_path / "bank")
  assert code == 0, err
  tree, _ = weights.load_converted(tmp_path / "bank", "bank")
  helpers.assert_same(tree["rows"], rows)
  bank = bank_files.from_tree(tree)
  np.testing.assert_array_equal(
    np.asarray(bank.rows, np.float32), rows.astype(np.float32)
  )


def test_types_that_an_npz_loses_are_named(tmp_path):
  stats = {"mu": np.zeros(4), "sigma": np.eye(4)}
  path = tmp_path / "fid.npz"
  for dtype, message in (
    ("float16", None),
    ("bfloat16", "'sigma' is of a type that numpy files lose"),
    ("float8_e5m2", "of another kind than numpy's own"),
  ):
    np.savez(path, **{**stats, "sigma": stats["sigma"].astype(DTYPES[dtype])})
    code, _, err = helpers.run(path, "--dry-run")
    assert code == (2 if message else 0), err
    assert (message or "") in err


def test_a_type_without_arrays_is_named(tmp_path):
  path = tmp_path / "x.safetensors"
  header = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
  path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
  code, _, err = helpers.run(path, "--dry-run")
  assert code == 2
  assert "'a' is of type F4" in err
