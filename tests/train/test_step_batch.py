"""Stored forms to what the step computes on."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.models import dit
from gmem_jax.models.encoders import protocols, random_conv
from gmem_jax.train import state as train_state, step as train_step
from tests.diffusion import common

pytestmark = pytest.mark.usefixtures("standard_promotion")
B, SHAPE, WIDTH = 4, (4, 4, 2), 8


@pytest.fixture(scope="module")
def parts():
  """(state, step, batch without tokens, bank)."""
  network = dit.LightningDiT(
    channels=2,
    snippet_dim=WIDTH,
    token_dim=192,
    width=16,
    depth=1,
    heads=2,
    patch=1,
    projector_width=8,
    projector_depth=1,
  )
  tx = optax.sgd(0.1)
  stats = protocols.LatentStats(mean=jnp.zeros(2), std=jnp.ones(2))
  step = train_step.make_train_step(
    network,
    tx,
    common.loss_config(projection_weight=0.5),
    stats,
    seed=0,
    ema_decay=0.9,
  )
  state = train_state.make_init(network, SHAPE, tx, seed=0)()
  random = np.random.default_rng(0)
  batch = {
    "mean": random.standard_normal((B, *SHAPE)).astype(np.float32),
    "logvar": np.full((B, *SHAPE), -3, np.float32),
    "feature": random.standard_normal((B, WIDTH)).astype(np.float32),
    "row": np.zeros(B, np.int32),
  }
  bank = bank_lib.MemoryBank(rows=jnp.ones((3, WIDTH)))
  return state, jax.jit(step), batch, bank


def test_tokens_of_pixels_are_those_that_would_be_stored(parts):
  state, step, batch, bank = parts
  encoder = random_conv.make(0, 3)
  pixels = np.random.default_rng(1).integers(0, 256, (B, 16, 16, 3), np.uint8)
  mirrored = np.array([True, False, True, False])
  seen = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
  tokens = encoder(protocols.to_float(jnp.asarray(seen)))[1]
  given, ours = (
    step(state, batch | more, bank, encoder)
    for more in (
      {"tokens": tokens},
      {"pixels": pixels, "mirrored": mirrored},
    )
  )
  for a, b in zip(*map(jax.tree.leaves, (given, ours)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  # The orientation matters: other views, another loss.
  other = step(
    state, batch | {"pixels": pixels, "mirrored": ~mirrored}, bank, encoder
  )
  difference = other[1]["train/projection"] - ours[1]["train/projection"]
  assert abs(difference) > 1e-4


def normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_stored_latent_is_only_cast():
  stored = normal(64, *SHAPE).astype(ml_dtypes.bfloat16)
  latents = train_step.latents(
    {"latent": jnp.asarray(stored)}, seed=0, step=jnp.int32(3)
  )
  assert latents.dtype == jnp.float32
  np.testing.assert_array_equal(latents, stored.astype(np.float32))


def test_a_posterior_is_drawn_from_anew_at_every_step():
  mean = normal(64, *SHAPE).astype(ml_dtypes.bfloat16)
  logvar = (0.5 * normal(64, *SHAPE, seed=1) - 2).astype(ml_dtypes.bfloat16)
  batch = {"mean": jnp.asarray(mean), "logvar": jnp.asarray(logvar)}
  latents = [
    train_step.latents(batch, seed=7, step=jnp.int32(s)) for s in (3, 4, 3)
  ]
  np.testing.assert_array_equal(latents[0], latents[2])
  assert (latents[0] != latents[1]).all()
  noise = jax.random.normal(rngs.key(7, "train/posterior", 3), mean.shape)
  std = np.exp(logvar.astype(np.float32) / 2)
  expected = mean.astype(np.float32) + std * np.asarray(noise)
  np.testing.assert_allclose(latents[0], expected, rtol=1e-5, atol=1e-5)
  # Standardised, the draws are standard normal.
  z = (np.asarray(latents[1]) - mean.astype(np.float32)) / std
  assert abs(z.mean()) < 4 / z.size**0.5
  assert abs(z.std() - 1) < 4 / (2 * z.size) ** 0.5


def test_int8_tokens_are_scaled():
  tokens = np.random.default_rng(0).integers(-127, 128, (3, 5, 6), np.int8)
  scales = np.abs(normal(3, 5)) + 0.1
  found = train_step.tokens(
    {"tokens": jnp.asarray(tokens), "token_scales": jnp.asarray(scales)}, None
  )
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, tokens * scales[..., None], rtol=1e-6)


def test_bfloat16_tokens_are_only_cast():
  tokens = normal(3, 5, 6).astype(ml_dtypes.bfloat16)
  found = train_step.tokens({"tokens": jnp.asarray(tokens)}, None)
  np.testing.assert_array_equal(found, tokens.astype(np.float32))


def test_tokens_of_pixels_are_of_the_mirrored_view():
  pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
  mirrored = np.array([False, True, True, False])
  encoder = random_conv.make(0, 3)
  batch = {"pixels": jnp.asarray(pixels), "mirrored": jnp.asarray(mirrored)}
  found = jax.jit(train_step.tokens)(batch, encoder)
  seen = pixels.copy()
  seen[1:3] = pixels[1:3, :, ::-1]
  expected = encoder(jnp.asarray(seen / np.float32(127.5) - np.float32(1)))[1]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="needs the encoder"):
    train_step.tokens(batch, None)


def test_no_tokens():
  assert train_step.tokens({"row": jnp.zeros(3, jnp.int32)}, None) is None


def test_snippets_are_of_the_view_where_the_batch_has_it():
  bank = bank_lib.MemoryBank(rows=jnp.asarray(normal(5, 6)))
  row = jnp.asarray([4, 0], jnp.int32)
  of_bank = train_step.snippets({"row": row}, bank)
  np.testing.assert_array_equal(of_bank, bank_lib.snippets(bank, row))
  feature = normal(2, 6, seed=3).astype(ml_dtypes.bfloat16)
  of_view = train_step.snippets(
    {"row": row, "feature": jnp.asarray(feature)}, bank
  )
  exact = feature.astype(np.float64)
  exact /= np.linalg.norm(exact, axis=1, keepdims=True)
  assert of_view.dtype == jnp.float32
  np.testing.assert_allclose(of_view, exact, rtol=1e-6, atol=1e-7)


def test_only_what_the_step_reads_leaves_the_host():
  available = {
    "mean", "logvar", "tokens", "token_scales", "feature", "row", "label",
  }  # fmt: skip
  everything = train_step.fields(available, conditioned=True, project=True)
  assert set(everything) == available - {"label"}
  little = train_step.fields(available, conditioned=False, project=False)
  assert set(little) == {"mean", "logvar", "row"}
