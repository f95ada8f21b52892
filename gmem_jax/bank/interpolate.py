"""Snippets between two snippets: linear, spherical, concatenated, masked.

Each method is a function of two vectors; `mix` applies one at several
positions, and `between` gives the unit vectors that images are generated from.

Shapes: d snippet width, s points; *n any axes before it.

Source: GMem (arXiv 2412.08781), section 4.4 and appendix on interpolation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gmem_jax.config import sections

# Norms below this count as zero.
EPS = 1e-12


def _norm(x: Float[Array, "*n d"]) -> Float[Array, "*n 1"]:
  return jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), EPS)


def _reject(
  x: Float[Array, "*n d"], unit: Float[Array, "*n d"]
) -> Float[Array, "*n d"]:
  """The part of x that is orthogonal to a unit vector."""
  return x - jnp.sum(x * unit, axis=-1, keepdims=True) * unit


def linear(
  a: Float[Array, "*n d"], b: Float[Array, "*n d"], alpha: Float[Array, ""]
) -> Float[Array, "*n d"]:
  """The straight line from a (alpha=0) to b (alpha=1)."""
  return (1 - alpha) * a + alpha * b


def spherical(
  a: Float[Array, "*n d"], b: Float[Array, "*n d"], alpha: Float[Array, ""]
) -> Float[Array, "*n d"]:
  """The arc of the great circle from a (alpha=0) to b (alpha=1).

  For unit vectors at an angle theta this is the usual
  (sin((1-alpha) theta) a + sin(alpha theta) b) / sin(theta), written in the
  orthonormal frame (a, direction from a to b). Norms other than 1 are
  interpolated linearly. Opposite vectors leave the circle open; a fixed one is
  taken.
  """
  # The usual formula divides by nearly zero for equal and for opposite vectors:
  # the published code returns zero for the first and noise for the second.
  norm_a, norm_b = _norm(a), _norm(b)
  a, b = a / norm_a, b / norm_b
  # The arc cosine of a·b would lose half of the digits at both ends.
  apart = jnp.linalg.norm(a - b, axis=-1, keepdims=True)
  along = jnp.linalg.norm(a + b, axis=-1, keepdims=True)
  theta = 2 * jnp.atan2(apart, along)

  # The axis that is least aligned with `a` serves where b - a has no direction.
  axis = jax.nn.one_hot(jnp.argmin(jnp.abs(a), -1), a.shape[-1], dtype=a.dtype)
  across = _reject(b, a)
  across = jnp.where(_norm(across) < 1e-6, _reject(axis, a), across)
  # Near opposite vectors the first subtraction leaves rounding along `a`.
  across = _reject(across / _norm(across), a)

  angle = alpha * theta
  direction = jnp.cos(angle) * a + jnp.sin(angle) * across
  return linear(norm_a, norm_b, alpha) * direction


def concat(
  a: Float[Array, "*n d"], b: Float[Array, "*n d"]
) -> Float[Array, "*n d"]:
  """The first half of a's features and the second half of b's."""
  # The last axis, always: given a batch, the published code splits the batch.
  half = a.shape[-1] // 2
  return jnp.concatenate([a[..., :half], b[..., half:]], axis=-1)


def mask(
  a: Float[Array, "*n d"],
  b: Float[Array, "*n d"],
  uniform: Float[Array, "*n d"],
) -> Float[Array, "*n d"]:
  """Takes each feature from a where `uniform` exceeds 1/2, else from b."""
  return jnp.where(uniform > 0.5, a, b)


def mix(
  method: sections.Interpolation,
  a: Float[Array, "*n d"],
  b: Float[Array, "*n d"],
  alphas: Float[Array, " s"],
  key: Key[Array, ""] | None = None,
) -> Float[Array, "s *n d"]:
  """Vectors at some positions between two.

  Args:
    method: "mask" draws a new mask for every position, "concat" repeats one
      vector; neither uses the positions themselves.
    a: The vector at position 0.
    b: The vector at position 1.
    alphas: Positions in [0, 1].
    key: A random key, for "mask".

  Raises:
    ValueError: For "mask" without a key.
  """
  if method == "concat":
    one = concat(a, b)[None]
    return jnp.tile(one, (len(alphas), *(1,) * a.ndim))
  if method == "mask":
    if key is None:
      raise ValueError("interpolation by 'mask' needs a key")
    uniform = jax.random.uniform(key, (len(alphas), *a.shape), a.dtype)
    return jax.vmap(mask, in_axes=(None, None, 0))(a, b, uniform)
  function = linear if method == "linear" else spherical
  return jax.vmap(function, in_axes=(None, None, 0))(a, b, alphas)


def mixture(
  vectors: Float[Array, "k d"], weights: Float[Array, " k"]
) -> Float[Array, " d"]:
  """The weighted mean of directions, as a unit vector.

  Args:
    vectors: Of any length but zero.
    weights: Not negative, and not all zero; their sum does not matter.

  Returns:
    The unit vector; zero, the null condition, if the vectors cancel.
  """
  mean = jnp.sum(weights[:, None] * (vectors / _norm(vectors)), axis=0)
  return mean / _norm(mean)


def between(
  method: sections.Interpolation,
  a: Float[Array, "*n d"],
  b: Float[Array, "*n d"],
  points: int,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "s *n d"]:
  """Unit vectors at evenly spaced positions from a to b, both included.

  Args:
    method: See `mix`; "concat" has one point, whatever `points` is.
    a: One snippet, or several.
    b: As many snippets.
    points: At least 2; at least 1 for "mask".
    key: A random key, for "mask".

  Returns:
    The vectors. A linear path between opposite vectors passes through zero,
    which stays zero: the null condition.

  Raises:
    ValueError: If there are too few points, or for "mask" without a key.
  """
  least = {"concat": points, "mask": 1}.get(method, 2)
  if points < least:
    raise ValueError(
      f"interpolation by {method!r} with {points} points: at least {least}"
    )
  points = 1 if method == "concat" else points
  vectors = mix(method, a, b, jnp.linspace(0, 1, points, dtype=a.dtype), key)
  return vectors / _norm(vectors)
