"""Matmuls of 8-bit operands, for GPUs that multiply those faster.

Each operand is divided by a power of two that brings its largest magnitude just
below the format's largest number, rounded to the format, and multiplied back:
a value the format can hold, in the dtype it had, on every backend. XLA
recognises this around a matmul and passes cuBLASLt the 8-bit numbers and the
scales (NVIDIA, from Hopper on); elsewhere the same numbers are multiplied in
the dtype they had, so a CPU can check what a GPU will learn.

Operands of the forward pass are e4m3 (3 bits of mantissa), the gradients that
meet them in the backward pass e5m2 (wider range).

Source: Micikevicius et al. (2022), arXiv 2209.05433.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

FORWARD = jnp.float8_e4m3fn
BACKWARD = jnp.float8_e5m2


def round_to(x: Float[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
  """Rounds to what an 8-bit format holds, after scaling the whole tensor.

  Returns:
    Values in x's dtype. Zeros stay zeros, and the largest magnitude is kept to
    the format's precision. Values that are not finite stay so, though an
    infinity may become NaN, and then other values may, too.
  """
  # The scale is that of the tensor at hand. One from earlier steps would save a
  # pass over it, but be state of the network, and overflow when values jump.
  wide = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(wide))
  # A power of two scales exactly: rounding is all that is lost.
  _, exponent = jnp.frexp(largest / jnp.finfo(dtype).max.astype(jnp.float32))
  good = (largest > 0) & jnp.isfinite(largest)
  # A scale below 2^-126 would be subnormal, which some backends flush to zero.
  exponent = jnp.where(good, jnp.maximum(exponent, -100), 0)
  scale = jnp.ldexp(jnp.ones((), jnp.float32), exponent)
  small = (wide / scale).astype(dtype)
  return small.astype(x.dtype) * scale.astype(x.dtype)


# Two functions with gradients of their own, not one around the matmul: JAX then
# derives the backward pass's two matmuls from the rounded operands itself.
@jax.custom_vjp
def _operand(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Rounded for the forward pass; its gradient is that of the identity."""
  return round_to(x, FORWARD)


_operand.defvjp(lambda x: (_operand(x), None), lambda _, g: (g,))


@jax.custom_vjp
def _result(y: Float[Array, "..."]) -> Float[Array, "..."]:
  """The identity; its gradient is rounded for the backward pass."""
  return y


_result.defvjp(lambda y: (y, None), lambda _, g: (round_to(g, BACKWARD),))


def dot_general(
  lhs: Float[Array, "..."],
  rhs: Float[Array, "..."],
  dimension_numbers: jax.lax.DotDimensionNumbers,
  **kwargs: Any,
) -> Float[Array, "..."]:
  """`jax.lax.dot_general` with 8-bit operands, in the backward pass too."""
  product = jax.lax.dot_general(
    _operand(lhs), _operand(rhs), dimension_numbers, **kwargs
  )
  return _result(product)
