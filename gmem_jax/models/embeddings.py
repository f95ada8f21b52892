"""Position and time tables, all in float32.

Letters: `b` batch, `n` tokens, `d` width, `f` half a head's width.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Cosines and sines of the rotation of q and k.
Rope = tuple[Float[np.ndarray, "n f"], Float[np.ndarray, "n f"]]

_BASE = 10000.0
# Sinusoids of the timestep: 128 cosines, then 128 sines.
_TIME_FREQUENCIES = 128


def timestep_features(t: Float[Array, " b"]) -> Float[Array, "b 256"]:
  """Sinusoids of the timestep.

  The argument is t itself: the published networks do not scale it by 1000, so
  that all but the first few sinusoids vary slowly over [0, 1].

  Args:
    t: time in [0, 1].

  Returns:
    cos(t w_i) for i = 0..127, then sin(t w_i), with w_i = 10000^(-i/128).

  Source: Peebles and Xie (2023), arXiv 2212.09748, as used by SiT.
  """
  i = np.arange(_TIME_FREQUENCIES, dtype=np.float32)
  w = np.exp(-math.log(_BASE) * i / np.float32(_TIME_FREQUENCIES))
  angles = t.astype(jnp.float32)[:, None] * w.astype(np.float32)[None, :]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_positions(grid: int, width: int) -> Float[np.ndarray, "1 n d"]:
  """Fixed two-dimensional position table of a square grid.

  The first half of a token's vector encodes its column, the second its row;
  `rope_tables` has the opposite order. Both are the published ones.

  Args:
    grid: tokens along each side; n = grid^2, row after row.
    width: d, a multiple of 4.

  Returns:
    [sin(col w), cos(col w), sin(row w), cos(row w)], w_i = 10000^(-i/(d/4)).

  Source: Peebles and Xie (2023), arXiv 2212.09748.
  """
  w = _BASE ** (-np.arange(width // 4, dtype=np.float64) / (width // 4))
  row, col = np.divmod(np.arange(grid * grid), grid)
  angles = [p[:, None] * w[None, :] for p in (col, row)]
  table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1)
  return table[None].astype(np.float32)


def rope_tables(grid: int, head_width: int) -> Rope:
  """Cosine and sine of the rotary angles of a square grid.

  Args:
    grid: tokens along each side; n = grid^2, row after row.
    head_width: channels of one head, a multiple of 4; f is half of it.

  Returns:
    (cos, sin), one angle for each adjacent pair of channels: those of the row,
    then those of the column, position * 10000^(-j/f) for j = 0, 2, ...

  Source: Su et al. (2021), arXiv 2104.09864; two-dimensional as in EVA-02.
  """
  half = head_width // 2
  w = _BASE ** (-np.arange(0, half, 2, dtype=np.float64) / half)
  row, col = np.divmod(np.arange(grid * grid), grid)
  angles = np.concatenate([p[:, None] * w[None, :] for p in (row, col)], 1)
  return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
  x: Float[Array, "b n heads hd"],
  cos: Float[np.ndarray, "n f"],
  sin: Float[np.ndarray, "n f"],
) -> Float[Array, "b n heads hd"]:
  """Rotates adjacent pairs of channels by the angles of `rope_tables`.

  Args:
    x: queries or keys, float32.
    cos: cosines, f = hd / 2.
    sin: sines.

  Returns:
    (a cos - b sin, b cos + a sin) for each pair (a, b), interleaved as in x.

  Source: Su et al. (2021), arXiv 2104.09864.
  """
  cos, sin = cos[None, :, None, :], sin[None, :, None, :]
  a, b = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, 2), -1, 0)
  pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return pairs.reshape(x.shape)
