import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.data import sources
from gmem_jax.models.encoders import protocols, random_conv


def test_bytes_survive_the_round_trip():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  back = protocols.to_uint8(protocols.to_float(jnp.asarray(levels)))
  np.testing.assert_array_equal(back, levels)


def test_to_uint8_clips_and_truncates_as_published():
  x = jnp.array([-2.0, -1.0, 0.0, 0.004, 1.0, 3.0]).reshape(1, 1, 6, 1)
  expected = np.trunc(np.clip(127.5 * np.asarray(x) + 128, 0, 255))
  np.testing.assert_array_equal(protocols.to_uint8(x), expected)


def test_latents_are_normalised_and_back():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(3, 2, (50, 4, 4, 2)), jnp.float32)
  x = x * jnp.array([1.0, 5.0])[None, None, None]
  stats = protocols.latent_stats(x)
  y = protocols.normalise_latents(x, stats)
  np.testing.assert_allclose(y.mean((0, 1, 2)), [0, 0], atol=1e-5)
  np.testing.assert_allclose(y.std((0, 1, 2), ddof=1), [1, 1], atol=1e-5)
  back = protocols.denormalise_latents(y, stats)
  np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-5)


def test_protocols_are_met():
  assert isinstance(protocols.IdentityTokenizer(), protocols.Tokenizer)
  encoder = random_conv.make(0, 1)
  assert isinstance(encoder, protocols.FeatureEncoder)


def test_random_conv_is_fixed_by_its_seed():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.uniform(-1, 1, (5, 8, 8, 1)), jnp.float32)
  feature, tokens = random_conv.make(0, 1)(x)
  assert feature.shape == (5, random_conv.WIDTH)
  assert tokens.shape == (5, 4, 192)
  np.testing.assert_allclose(jnp.linalg.norm(feature, axis=1), 1, rtol=1e-6)
  again, _ = random_conv.make(0, 1)(x)
  other, _ = random_conv.make(1, 1)(x)
  np.testing.assert_array_equal(feature, again)
  assert not np.allclose(feature, other)


def test_near_images_have_near_features():
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (20, 16, 16, 3)).astype(np.float32)
  y = x + 0.05 * rng.normal(size=x.shape).astype(np.float32)
  encode = random_conv.make(0, 3)
  a, b = encode(jnp.asarray(x))[0], encode(jnp.asarray(y))[0]
  np.testing.assert_array_equal(jnp.argmax(a @ b.T, axis=1), np.arange(20))


def test_features_of_different_images_do_not_coincide():
  pixels = jnp.asarray(sources.digits().pixels[:200])
  feature, _ = random_conv.make(0, 1)(protocols.to_float(pixels))
  cosines = feature @ feature.T
  assert float((cosines.sum() - 200) / (200 * 199)) < 0.35


def test_random_conv_names_the_wrong_size():
  with pytest.raises(ValueError, match="12 x 8"):
    random_conv.make(0, 1)(jnp.zeros((1, 12, 8, 1)))
