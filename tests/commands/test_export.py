"""A run, exported: the same images from a few small files."""

import numpy as np
import pytest

import gmem_jax
from gmem_jax.bank import files as bank_files
from gmem_jax.commands import export
from gmem_jax.files import weights
from tests import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "digits"
  tiny.save_run(workdir)
  return workdir


def _load(out):
  changes = [f"{key}={value}" for key, value in tiny.CHANGES.items()]
  return gmem_jax.load(
    out / "network.safetensors",
    *changes,
    f"encoder.latent_stats={out / 'latent_stats.safetensors'}",
    f"sample.bank={out / 'bank'}",
  )  # Only the digits have such a network.


def test_images_are_those_of_the_run(run, tmp_path):
  export.export_run(run, tmp_path / "out")
  expected = gmem_jax.load(run).sample(rows=[3, 7], per_row=2)
  made = _load(tmp_path / "out").sample(rows=[3, 7], per_row=2)
  np.testing.assert_array_equal(made.pixels, expected.pixels)
  for path in (tmp_path / "out").rglob("*"):
    assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
  metadata = weights.read_metadata(tmp_path / "out" / "network.safetensors")
  assert metadata["kind"] == "sit"
  assert metadata["model"]["grid"] == 4


def test_halves_take_half_and_move_pixels_little(run, tmp_path, capsys):
  whole, half = tmp_path / "whole", tmp_path / "half"
  assert export.main([str(run), str(whole)]) == 0
  small = ["--dtype=bfloat16", "--storage=int8"]
  assert export.main([str(run), str(half), *small]) == 0
  *_, wrote, following = capsys.readouterr().out.splitlines()
  assert "latent_stats.safetensors, network.safetensors" in wrote
  assert {word for word in following.split() if "=" in word} == {
    "--mode=sample:",
    f"--config.sample.network={half}/network.safetensors",
    f"--config.encoder.latent_stats={half}/latent_stats.safetensors",
    f"--config.sample.bank={half}/bank",
  }
  sizes = [
    (out / "network.safetensors").stat().st_size for out in (whole, half)
  ]
  assert sizes[1] < 0.55 * sizes[0]
  assert bank_files.read(half / "bank").bank.storage == "int8"
  expected = _load(whole).sample(rows=[3, 7]).pixels.astype(int)
  made = _load(half).sample(rows=[3, 7]).pixels.astype(int)
  assert 0 < np.abs(made - expected).mean() < 4


def test_what_cannot_be_exported_is_named(run, tmp_path, capsys):
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "file").touch()
  for arguments, told in (
    ([str(tmp_path / "none"), str(tmp_path / "x")], "there is no run"),
    ([str(run), str(tmp_path / "taken")], "taken already exists"),
  ):
    assert export.main(arguments) == 2
    assert told in capsys.readouterr().err
  assert not (tmp_path / "x").exists()
