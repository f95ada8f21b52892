import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmem_jax.models import dit
from gmem_jax.train import state as train_state


def test_ema_moves_and_copies_frozen_parameters():
  ema = {"kernel": jnp.array([1.0, 2.0]), "pos_embed": jnp.array([0.1])}
  params = {"kernel": jnp.array([3.0, 2.0]), "pos_embed": jnp.array([0.7])}
  moved = train_state.update_ema(ema, params, 0.75)
  np.testing.assert_allclose(moved["kernel"], [1.5, 2.0])
  np.testing.assert_array_equal(moved["pos_embed"], params["pos_embed"])


def test_ema_converges_geometrically():
  ema, params = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
  for _ in range(10):
    ema = train_state.update_ema(ema, params, 0.9)
  np.testing.assert_allclose(ema["w"], 1 - 0.9**10, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_init_is_pure_and_starts_the_average_at_the_parameters():
  network = dit.LightningDiT(
    channels=2,
    snippet_dim=6,
    token_dim=0,
    width=16,
    depth=1,
    heads=2,
    patch=1,
  )
  init = train_state.make_init(network, (4, 4, 2), optax.adam(1e-3), seed=0)
  shapes = jax.eval_shape(init)
  state, again = init(), init()
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape), state, shapes
  )
  jax.tree.map(np.testing.assert_array_equal, state, again)
  assert int(state.step) == 0
  jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
  # A donated state must not hold one buffer twice.
  for a, b in zip(
    *map(jax.tree.leaves, (state.ema, state.params)), strict=True
  ):
    assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()
