"""Weights with NaN or infinity: named, counted, and refused unless allowed."""

import ml_dtypes
import numpy as np
import pytest

from gmem_jax.convert import torch_export
from gmem_jax.files import weights
from gmem_jax.files.torch_reader import torch_file
from tests.convert import helpers


def _refused(path, tmp_path, *options):
  """The message of the refusal, which must have written nothing."""
  code, _, err = helpers.run(path, tmp_path / "out", *options)
  assert code == 2
  assert not (tmp_path / "out").exists()
  return err


@pytest.mark.golden
def test_a_network(golden_dir, tmp_path):
  source = golden_dir / "lightningdit_c.pth"
  options, state = helpers.settings(source), {**torch_file.load(source)}
  for name, values in (
    ("blocks.2.attn.qkv.weight", [np.nan, np.inf, -np.inf]),
    ("final_layer.linear.bias", [np.nan]),
  ):
    state[name] = np.array(state[name])
    state[name].flat[: len(values)] = values
  path = tmp_path / "x.pth"
  torch_export.save(state, path)
  err = _refused(path, tmp_path, *options)
  assert "NaN or infinity in 4 values of 2 tensor(s): " in err
  assert "blocks.2.attn.qkv.weight (3)" in err
  assert "final_layer.linear.bias (1)" in err
  assert "--allow-nonfinite" in err
  options += ["--format=safetensors", "--allow-nonfinite"]
  code, out, err = helpers.run(path, tmp_path / "out", *options)
  assert code == 0, err
  assert "NaN or infinity in 4 values of 2 tensor(s)" in out
  params, metadata = weights.load_converted(tmp_path / "out")
  assert metadata["nonfinite"] == {
    "blocks.2.attn.qkv.weight": 3,
    "final_layer.linear.bias": 1,
  }
  kernel = params["blocks"]["attn"]["qkv"]["kernel"][2]
  assert np.count_nonzero(~np.isfinite(kernel)) == 3


@pytest.mark.golden
def test_the_bank_and_the_tables_beside_a_network(golden_dir, tmp_path):
  path = tmp_path / "x.pth"
  for source, name in (
    ("sit_tiny.pth", "memorybank"),
    ("dinov2_tiny.pth", "mask_token"),
    ("lightningdit_a.pth", "feat_rope.freqs_cos"),
  ):
    value = {**torch_file.load(golden_dir / source)}
    value[name] = np.array(value[name])
    value[name].flat[5] = np.nan
    path.unlink(missing_ok=True)
    torch_export.save(value, path)
    err = _refused(path, tmp_path, *helpers.settings(golden_dir / source))
    assert f"1 values of 1 tensor(s): {name} (1);" in err


@pytest.mark.parametrize(
  "dtype",
  [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2],
)
def test_a_bank(tmp_path, dtype):
  rows = np.ones((40, 8), dtype)
  rows[3, 1] = rows[39, 7] = np.nan
  torch_export.save(rows, tmp_path / "bank.pth")
  err = _refused(tmp_path / "bank.pth", tmp_path)
  assert "2 values of 1 tensor(s): rows (2)" in err


def test_statistics(tmp_path):
  stats = {"mean": np.zeros((1, 4, 1, 1)), "std": np.ones((1, 4, 1, 1))}
  stats["std"][0, 2] = np.inf
  torch_export.save(stats, tmp_path / "stats.pt")
  assert "std (1)" in _refused(tmp_path / "stats.pt", tmp_path)
  sigma = np.eye(6)
  sigma[2, 3] = sigma[3, 2] = np.nan
  np.savez(tmp_path / "fid.npz", mu=np.zeros(6), sigma=sigma)
  assert "sigma (2)" in _refused(tmp_path / "fid.npz", tmp_path)


def test_many_tensors_make_a_short_message(golden_dir, tmp_path):
  state = {
    name: np.full_like(tensor, np.nan)
    for name, tensor in torch_file.load(golden_dir / "dinov2_tiny.pth").items()
  }
  path = tmp_path / "x.pth"
  torch_export.save(state, path)
  err = _refused(
    path, tmp_path, *helpers.settings(golden_dir / "dinov2_tiny.pth")
  )
  assert f"of {len(state)} tensor(s)" in err
  assert len(err.splitlines()) == 1
  assert len(err) < 500
