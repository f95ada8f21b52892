import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.data import in_memory, schema, sources
from gmem_jax.models.encoders import protocols, random_conv


@pytest.fixture(scope="module")
def digits():
  return sources.digits()


def test_digits_are_the_real_ones(digits):
  assert digits.pixels.shape == (1797, 8, 8, 1)
  assert digits.pixels.dtype == np.uint8
  assert (digits.pixels.min(), digits.pixels.max()) == (0, 255)
  assert np.bincount(digits.labels).min() > 170


def test_prepare_aligns_records_and_bank(digits):
  images = digits.take(np.arange(300), "first")
  encoder = random_conv.make(0, 1)
  prepared = in_memory.prepare(images, protocols.IdentityTokenizer(), encoder)
  assert prepared.info.size == len(prepared.records) == 300
  assert prepared.info.source == "first"
  record = prepared.records.read(280, schema.Flips(False, False, False))
  floats = protocols.to_float(jnp.asarray(digits.pixels[280:281]))
  np.testing.assert_allclose(record["latent"], floats[0], rtol=1e-6)
  np.testing.assert_allclose(
    prepared.bank.rows[record["row"]], encoder(floats)[0][0], atol=1e-6
  )
  latents = prepared.records.fields["latent"]
  np.testing.assert_allclose(prepared.stats.mean, [latents.mean()], rtol=1e-4)
  np.testing.assert_allclose(prepared.stats.std, [latents.std()], rtol=1e-3)
