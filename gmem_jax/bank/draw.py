"""Which memory an image is made from."""

import jax
from jaxtyping import Array, Integer

from gmem_jax import rngs


def draw_rows(
  seed: int, images: Integer[Array, " b"], size: int
) -> Integer[Array, " b"]:
  """Draws a bank row for each image, uniformly.

  Args:
    seed: The sampling seed.
    images: Global image numbers.
    size: Number of rows of the bank.

  Returns:
    Row numbers in [0, size); image i's depends on (seed, i) alone.
  """
  keys = rngs.keys(seed, "sample/row", images)
  return jax.vmap(lambda k: jax.random.randint(k, (), 0, size))(keys)
