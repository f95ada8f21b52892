"""Prepared data as images to compare with."""

import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax import pretrained, weights
from gmem_jax.encoders import protocols, vae
from gmem_jax.evaluate import build, frechet, reference, sources
from tests.convert import helpers
from tests.data import prepared
from tests.evaluate import fakes

SOME = np.array([21, 0, 7])


def test_stored_images_are_the_reference(tmp_path):
  """The same statistics as of the images in a file."""
  changes = {"tokens": "pixels", "image_shape": (6, 6, 3)}
  written = prepared.write(tmp_path / "data", **changes)
  pixels = np.stack([values["pixels"] for values in written])
  source = sources.open_images(tmp_path / "data")
  assert (source.count, source.shape) == (len(pixels), (6, 6, 3))
  assert not source.collective
  assert source.info["decoded_by"] is None
  np.testing.assert_array_equal(source.read(SOME), pixels[SOME])

  np.savez(tmp_path / "file.npz", arr_0=pixels)
  names = ("fid", "precision_recall")
  extractor = fakes.make_extractor(2)
  ours, theirs = (
    reference.open_reference(path, names, extractor, (6, 6, 3), None)
    for path in (tmp_path / "data", tmp_path / "file.npz")
  )
  assert (
    frechet.frechet_distance(ours.gaussians["pool"], theirs.gaussians["pool"])
    < 1e-9
  )
  np.testing.assert_array_equal(ours.rows["pool"], theirs.rows["pool"])
  assert ours.info["source"] == {"name": "numbers"}


def test_latents_of_the_identity_are_images(tmp_path):
  """bfloat16 loses none of the 256 levels."""
  written = prepared.write(
    tmp_path / "data",
    latents="sample",
    latent_shape=(4, 4, 1),
    image_shape=(4, 4, 1),
    tokenizer={"name": "identity"},
  )
  source = sources.open_images(tmp_path / "data")
  expected = np.stack([written[i]["latent"][0] for i in SOME])
  expected = protocols.to_uint8(jnp.asarray(expected, "float32"))
  np.testing.assert_array_equal(source.read(SOME), expected)
  assert source.collective
  levels = jnp.arange(256, dtype="uint8")[None, :, None, None]
  kept = protocols.to_float(levels).astype("bfloat16").astype("float32")
  np.testing.assert_array_equal(protocols.to_uint8(kept), levels)


def test_latents_are_no_images(tmp_path):
  prepared.write(tmp_path / "data")
  match = r"holds latents, no images.*\(numbers\).*--crop=16.*--decode="
  with pytest.raises(ValueError, match=match):
    sources.open_images(tmp_path / "data")
  with pytest.raises(ValueError, match="only the images of a folder"):
    sources.open_images(tmp_path / "data", crop=16)
  np.savez(tmp_path / "x.npz", arr_0=fakes.images(0, 2))
  with pytest.raises(ValueError, match="only prepared data can be decoded"):
    sources.open_images(tmp_path / "x.npz", decode="weights")


@pytest.mark.golden
def test_latents_are_decoded_when_asked_for(golden_dir, tmp_path):
  file, path = golden_dir / "vavae_tiny.pt", str(tmp_path / "vae")
  code, _, error = helpers.run(file, path, *helpers.settings(file))
  assert code == 0, error
  params, metadata = weights.load_converted(path)
  network = vae.AutoencoderKL(**pretrained.hashable(metadata["model"]))
  tokenizer = vae.Tokenizer(name="va_vae", network=network, params=params)
  shape = (2, 2, network.latent_channels)
  image = build.decoded_shape(tokenizer, shape)
  changes = {"latent_shape": shape, "image_shape": image}
  made = {"name": "va_vae", **pretrained.origin(metadata)}
  written = prepared.write(tmp_path / "data", tokenizer=made, **changes)
  source = sources.open_images(tmp_path / "data", decode=path)
  assert source.info["decoded_by"] == made
  means = np.stack([written[i]["mean"][0] for i in SOME]).astype(np.float32)
  found = source.read(SOME)
  assert found.shape[1:] == source.shape
  expected = np.asarray(
    protocols.to_uint8(tokenizer.decode(jnp.asarray(means))), int
  )
  # Batches of other sizes may round a level otherwise.
  assert np.abs(found - expected).max() <= 1
  assert found.std() > 10

  prepared.write(tmp_path / "other", **changes)
  with pytest.raises(ValueError, match=r"--decode=.*the latents are of"):
    sources.open_images(tmp_path / "other", decode=path)
