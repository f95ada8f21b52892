"""Snippets between two snippets: linear, spherical, concatenated, masked.

Each method is a function of two vectors; `between` makes the sequence from one
to the other that images are generated from, at unit length.

Shapes: `d` snippet width, `s` points; `*n` any axes before it.

Source: GMem (arXiv 2412.08781), section 4.4 and appendix on interpolation.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Method = Literal["linear", "spherical", "concat", "mask"]

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
  orthonormal frame (a, direction from a to b), which keeps its digits at every
  angle. Norms other than 1 are interpolated linearly. Opposite vectors leave
  the circle open; a fixed one is taken. (The published code returns zero for
  equal vectors and divides by nearly zero for opposite ones.)

  Args:
    a: start.
    b: end.
    alpha: position in [0, 1].

  Returns:
    The point on the arc.
  """
  norm_a, norm_b = _norm(a), _norm(b)
  a, b = a / norm_a, b / norm_b
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
  """The first half of a's features and the second half of b's.

  (The published code splits the batch when given one.)
  """
  half = a.shape[-1] // 2
  return jnp.concatenate([a[..., :half], b[..., half:]], axis=-1)


def mask(
  a: Float[Array, "*n d"],
  b: Float[Array, "*n d"],
  uniform: Float[Array, "*n d"],
) -> Float[Array, "*n d"]:
  """Each feature from a where `uniform` exceeds 1/2, else from b."""
  return jnp.where(uniform > 0.5, a, b)


def between(
  method: Method,
  a: Float[Array, "*n d"],
  b: Float[Array, "*n d"],
  points: int,
  key: Key[Array, ""] | None = None,
) -> Float[Array, "s *n d"]:
  """Unit vectors from one snippet to another.

  Args:
    method: "linear" and "spherical" go from a to b at evenly spaced positions,
      both ends included; "mask" draws a new mask for every point; "concat" has
      one point only.
    a: snippet, or several.
    b: as many snippets.
    points: how many vectors to return; "concat" ignores it.
    key: a random key, for "mask".

  Returns:
    The vectors, each of unit length. A linear path between opposite vectors
    passes through zero, which stays zero: the null condition.

  Raises:
    ValueError: fewer than two points where both ends are included, fewer than
      one for "mask", or a mask without a key.
  """
  if method == "concat":
    vectors = concat(a, b)[None]
  elif method == "mask":
    if key is None or points < 1:
      raise ValueError(
        f"Interpolation by 'mask' with {points} points and "
        f"{'no' if key is None else 'a'} key; it needs a key and points >= 1."
      )
    uniform = jax.random.uniform(key, (points, *a.shape), a.dtype)
    vectors = jax.vmap(mask, in_axes=(None, None, 0))(a, b, uniform)
  else:
    if points < 2:
      raise ValueError(
        f"Interpolation by {method!r} with {points} points; both ends are "
        "included, so points >= 2."
      )
    function = linear if method == "linear" else spherical
    alphas = jnp.linspace(0, 1, points, dtype=a.dtype)
    vectors = jax.vmap(function, in_axes=(None, None, 0))(a, b, alphas)
  return vectors / _norm(vectors)
