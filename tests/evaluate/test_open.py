"""Prepared data as images to compare with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax import rngs
from gmem_jax.data import load_encoders
from gmem_jax.evaluate import frechet, open as open_lib, reference, scores
from gmem_jax.files import weights
from gmem_jax.models.encoders import protocols, vae
from tests.data import prepared
from tests.evaluate import fakes

SOME = np.array([21, 0, 7])


def test_stored_images_are_the_reference(tmp_path):
  """The same statistics as of the images in a file."""
  changes = {"tokens": "pixels", "image_shape": (6, 6, 3)}
  written = prepared.write(tmp_path / "data", **changes)
  pixels = np.stack([values["pixels"] for values in written])
  source = open_lib.open_images(tmp_path / "data")
  assert (source.count, source.shape) == (len(pixels), (6, 6, 3))
  assert not source.collective
  assert source.info["decoded_by"] is None
  np.testing.assert_array_equal(source.read(SOME), pixels[SOME])

  np.savez(tmp_path / "file.npz", arr_0=pixels)
  names = ("fid", "precision_recall")
  extractor = fakes.make_extractor(2)
  ours, theirs = (
    reference.against(
      scores.Evaluator(names, extractor), path, (6, 6, 3), None
    ).reference
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
  source = open_lib.open_images(tmp_path / "data")
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
    open_lib.open_images(tmp_path / "data")
  with pytest.raises(ValueError, match="only the images of a folder"):
    open_lib.open_images(tmp_path / "data", crop=16)
  np.savez(tmp_path / "x.npz", arr_0=fakes.images(0, 2))
  with pytest.raises(ValueError, match="only prepared data can be decoded"):
    open_lib.open_images(tmp_path / "x.npz", decode="weights")


def write_vae(path):
  """A small autoencoder of random weights, as the converter writes one."""
  model = {"latent_channels": 2, "ch": 4, "ch_mult": [1], "num_groups": 2}
  network = vae.AutoencoderKL(num_res_blocks=1, **load_encoders.hashable(model))
  images = jnp.zeros((1, 4, 4, 3))
  init = jax.jit(lambda: network.init(rngs.key(0, "init"), images))
  params = jax.tree.map(np.asarray, init()["params"])
  metadata = {
    "kind": "vae",
    "title": "small",
    "model": model | {"num_res_blocks": 1, "latent_scale": None},
    "source": {"file": "small.pt", "sha256": "0" * 64},
    "weights": "model",
    "step": None,
  }
  weights.save_converted(path, {"params": params}, metadata)
  return vae.VAETokenizer(
    name="va_vae", network=network, params=params
  ), metadata


def test_latents_are_decoded_when_asked_for(tmp_path):
  tokenizer, metadata = write_vae(tmp_path / "vae")
  made = {"name": "va_vae", **weights.origin(metadata)}
  changes = {"latent_shape": (4, 4, 2), "image_shape": (4, 4, 3)}
  written = prepared.write(tmp_path / "data", tokenizer=made, **changes)
  source = open_lib.open_images(tmp_path / "data", decode=str(tmp_path / "vae"))
  assert source.info["decoded_by"] == made
  assert source.collective
  means = np.stack([values["mean"][0] for values in written])
  decode = jax.jit(lambda x: protocols.to_uint8(tokenizer.decode(x)))
  expected = np.asarray(decode(means.astype(np.float32)), int)
  found = source.read(np.arange(len(means)))  # more than are decoded at a time
  assert found.shape == (len(means), *source.shape)
  # Batches of other sizes may round a level otherwise.
  assert np.abs(found - expected).max() <= 1
  assert found.std() > 10

  prepared.write(tmp_path / "other", **changes)
  with pytest.raises(ValueError, match=r"--decode=.*the latents are of"):
    open_lib.open_images(tmp_path / "other", decode=str(tmp_path / "vae"))
