"""Choosing the memory snippet of an image from its own noise.

GMem's first release stores how often each row of its bank occurred. The mean
of a noise tensor, scaled to a standard normal, gives a uniform number, and the
inverse of the cumulative frequencies maps that to a row: the rows are drawn by
frequency, and the noise alone decides.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def select_row(
  noise: Float[Array, "b ..."],
  frequencies: Int[Array, " m"] | Int[np.ndarray, " m"],
) -> Int[Array, " b"]:
  """Draws one row of the bank per sample, from the sample's noise.

  Args:
    noise: standard normal; its mean is taken in its own dtype.
    frequencies: how often each row occurred; not negative, not all zero.

  Returns:
    Row indices in [0, m), with probabilities in proportion to frequency. A
    uniform number that rounds to 1 selects the last row which ever occurred
    (the published code left the bank there).

  Source: GMem (arXiv 2412.08781), release of December 2024.
  """
  size = noise[0].size
  normal = jnp.mean(noise.reshape(noise.shape[0], size), axis=1) * size**0.5
  uniform = jax.scipy.stats.norm.cdf(normal)
  dtype = uniform.dtype
  cumulative = jnp.cumsum(jnp.asarray(frequencies).astype(dtype))
  row = jnp.searchsorted(cumulative / cumulative[-1], uniform, side="right")
  last = jnp.searchsorted(cumulative, cumulative[-1], side="left")
  return jnp.minimum(row, last)
