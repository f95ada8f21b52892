"""Banks, statistics and shards: the files that are no networks."""

import numpy as np
import pytest
import safetensors.numpy

from gmem_jax.convert import read
from gmem_jax.files import weights
from tests.convert import helpers


def _converted(path, out, tree):
  code, _, err = helpers.run(path, out)
  assert code == 0, err
  return weights.load_converted(out, tree)


@pytest.mark.golden
def test_the_full_bank(golden_dir, tmp_path):
  path = golden_dir / "bank_full.pth"
  bank, metadata = _converted(path, tmp_path / "full", "bank")
  assert metadata["kind"] == "bank"
  with np.load(golden_dir / "bank.npz") as data:
    np.testing.assert_array_equal(bank["rows"][data["idx"]], data["full_get"])
    picked = bank["rows"][data["idx_tensor"]]
    np.testing.assert_array_equal(picked, data["full_get_tensor"])


@pytest.mark.golden
def test_the_low_rank_bank(golden_dir, tmp_path):
  path = golden_dir / "bank_dmd.pth"
  bank, metadata = _converted(path, tmp_path / "dmd", "bank")
  assert metadata["kind"] == "low_rank_bank"
  rows = bank["coefficients"] @ bank["basis"].T + bank["mean"]
  with np.load(golden_dir / "bank.npz") as data:
    for index, key in (("idx", "dmd_get"), ("idx_tensor", "dmd_get_tensor")):
      wanted = data[key]
      error = np.abs(rows[data[index]] - wanted).max()
      assert error <= 1e-4 * np.abs(wanted).max(), (key, error)
    singular = bank["singular_values"]
    np.testing.assert_array_equal(singular, data["dmd_S"])


@pytest.mark.golden
def test_latent_statistics(golden_dir, tmp_path):
  path = golden_dir / "data_shards" / "latents_stats.pt"
  stats, metadata = _converted(path, tmp_path / "stats", "stats")
  assert metadata["kind"] == "latent_stats"
  with np.load(golden_dir / "data.npz") as data:
    for name in ("mean", "std"):
      wanted = data[f"latent_{name}"]
      assert stats[name].shape == (wanted.shape[1],)
      np.testing.assert_array_equal(stats[name], wanted[0, :, 0, 0])


@pytest.mark.golden
def test_shards_are_read_as_the_library_reads_them(golden_dir):
  paths = sorted((golden_dir / "data_shards").glob("*.safetensors"))
  assert paths
  for path in paths:
    ours = read.open_source(path).value
    theirs = safetensors.numpy.load_file(path)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
      helpers.assert_same(ours[name], array, name)
    code, _, err = helpers.run(path, "--dry-run")
    assert code == 2
    assert "shard of encoded training data" in err


@pytest.mark.golden
def test_the_release_brings_its_bank(golden_dir, tmp_path):
  path = golden_dir / "sit_tiny.pth"
  value = read.open_source(path).value
  out = tmp_path / "sit"
  assert helpers.run(path, out, *helpers.settings(path))[0] == 0
  bank, _ = weights.load_converted(out, "bank")
  np.testing.assert_array_equal(bank["rows"], value["memorybank"])
  assert bank["counts"].dtype == np.int64
  assert bank["counts"].tolist() == list(value["memoryfreq"])


def _fid(names, width=8):
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=(width,) if name.startswith("mu") else (width, width))
    for name in names
  }


@pytest.mark.parametrize(
  "arrays",
  [
    _fid(["mu", "sigma"]),
    {**_fid(["mu", "sigma"]), **_fid(["mu_s", "sigma_s"], 5)},
    # The reference files of the ADM suite bring their images.
    {
      "arr_0": np.zeros((4, 8, 8, 3), np.uint8),
      **_fid(["mu", "sigma", "mu_s", "sigma_s"]),
    },
  ],
)
def test_fid_references(tmp_path, arrays):
  path = tmp_path / "reference.npz"
  np.savez(path, **arrays)
  code, out, err = helpers.run(path, tmp_path / "out")
  assert code == 0, err
  assert ("arr_0" in out) == ("arr_0" in arrays)
  stats, metadata = weights.load_converted(tmp_path / "out", "stats")
  assert metadata["kind"] == "fid_stats"
  assert stats.keys() == arrays.keys() - {"arr_0"}
  for name, array in stats.items():
    helpers.assert_same(array, arrays[name])
  code, _, err = helpers.run(tmp_path / "out", tmp_path / "x", "--to-torch")
  assert code == 2
  assert "there is no PyTorch file" in err


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "a batch of images"),
    ({"x": np.zeros(3)}, "an npz with the arrays x"),
    ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, "sigma: shape"),
    ({**_fid(["mu", "sigma"]), "mu_s": np.zeros(3)}, "sigma_s: missing"),
  ],
)
def test_other_archives_are_named(tmp_path, arrays, message):
  path = tmp_path / "x.npz"
  np.savez(path, **arrays)
  code, _, err = helpers.run(path, tmp_path / "out")
  assert code == 2
  assert message in err


def test_a_damaged_archive_is_refused(tmp_path):
  path = tmp_path / "x.npz"
  np.savez(path, **_fid(["mu", "sigma"]))
  data = bytearray(path.read_bytes())
  data[200] ^= 255
  path.write_bytes(data)
  code, _, err = helpers.run(path, tmp_path / "out")
  assert code == 2
  assert "damaged" in err


@pytest.mark.golden
def test_other_npz_goldens_are_no_weights(golden_dir):
  paths = sorted(golden_dir.glob("*.npz"))
  assert paths
  for path in paths:
    code, out, err = helpers.run(path, "--dry-run")
    assert (code, out) == (2, ""), path
    assert path.name in err
