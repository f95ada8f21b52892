import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax import rngs


def bits(key):
  return np.asarray(jax.random.key_data(key)).tolist()


def test_key_depends_on_seed_name_and_ids_alone():
  assert bits(rngs.key(0, "train/noise", 3)) == bits(
    rngs.key(0, "train/noise", jnp.array(3, jnp.int32))
  )
  addresses = [
    rngs.key(0, "train/noise", 3),
    rngs.key(1, "train/noise", 3),
    rngs.key(0, "train/time", 3),
    rngs.key(0, "train/noise", 4),
    rngs.key(0, "train/noise"),
  ]
  assert len({tuple(bits(k)) for k in addresses}) == len(addresses)


def test_a_root_stands_for_its_seed():
  made = jax.jit(lambda root: rngs.key(root, "sample/noise", 3))(rngs.root(5))
  assert bits(made) == bits(rngs.key(5, "sample/noise", 3))


def test_every_stream_is_its_own():
  keys = {tuple(bits(rngs.key(7, name))) for name in rngs.STREAMS}
  assert len(keys) == len(rngs.STREAMS)


def test_a_key_does_not_depend_on_its_batch():
  ids = jnp.arange(100, 110)
  together = jax.random.key_data(rngs.keys(5, "sample/noise", ids))
  alone = jax.random.key_data(rngs.keys(5, "sample/noise", ids[3:4]))
  np.testing.assert_array_equal(together[3:4], alone)


def test_unknown_stream_is_named():
  with pytest.raises(ValueError, match="no random stream 'oops'"):
    rngs.key(0, "oops")


def test_streams_are_pinned():
  # Public interface: a change here changes every published sample.
  assert bits(rngs.key(0, "sample/noise", 0)) == [288296221, 486842247]
  assert rngs.int32(0, "data/shuffle") == 783993450
