"""The step on stored forms: what it computes itself, and what it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmem_jax import rngs
from gmem_jax.bank import bank as bank_lib
from gmem_jax.models import lightning_dit
from gmem_jax.models.encoders import protocols, random_conv
from gmem_jax.train import state as train_state, step as train_step
from tests.diffusion import common

pytestmark = pytest.mark.usefixtures("standard_promotion")
B, SHAPE, WIDTH = 4, (4, 4, 2), 8


@pytest.fixture(scope="module")
def parts():
  """(state, step, batch without tokens, bank)."""
  network = lightning_dit.LightningDiT(
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
  inputs = train_step.example_inputs(SHAPE, WIDTH)
  state = train_state.make_init(
    lambda: network.init(rngs.key(0, "init"), *inputs)["params"], tx
  )()
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
