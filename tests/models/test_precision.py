"""Products that must be float32 on accelerators too ask for it.

A CPU multiplies float32 as it is. TPUs round the operands to bfloat16 and GPUs
to TF32 unless the program asks otherwise, so what it asks is read here.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from gmem_jax.models import dit
from gmem_jax.models.encoders import dinov2, inception, random_conv, vae

WIDE = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
SMALL = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
LATENT = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
VECTOR = jax.ShapeDtypeStruct((2, 5), jnp.float32)


def products(function, *arguments):
  """The lines of the lowered program that multiply float32 arrays."""
  text = jax.jit(function).lower(*arguments).as_text()
  lines = [
    line
    for line in text.splitlines()
    if re.search(r"stablehlo\.(dot_general|convolution)\b", line)
  ]
  # ... : (operand, operand) -> result
  operands = [line.rsplit(" : (", 1)[1].split(") -> ")[0] for line in lines]
  kinds = [re.findall(r"x([a-z]+\d+)>", types) for types in operands]
  assert all(len(kind) == 2 for kind in kinds), "a line is not understood"
  found = zip(lines, kinds, strict=True)
  return [line for line, kind in found if "f32" in kind]


def rounded(lines):
  """Those that may be rounded."""
  return [line for line in lines if line.count("HIGHEST") != 2]


def apply(network, *arguments, **settings):
  """The products of a network on arguments of the given shapes."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments)
  return products(
    lambda variables, *args: network.apply(variables, *args, **settings),
    shapes,
    *arguments,
  )


AUTOENCODER = vae.AutoencoderKL(
  latent_channels=4, ch=8, ch_mult=(1, 1), num_res_blocks=1, num_groups=4,
  encoder_attention=(1,), decoder_attention=(1,),
)  # fmt: skip


def autoencode(method, x):
  """The products of one half of an autoencoder."""
  shapes = jax.eval_shape(AUTOENCODER.init, jax.random.key(0), SMALL)
  return products(
    lambda variables, x: jax.tree.leaves(
      AUTOENCODER.apply(variables, x, method=method)
    ),
    shapes,
    x,
  )


FROZEN = {
  "encode": lambda: autoencode("encode", SMALL),
  "decode": lambda: autoencode("decode", LATENT),
  "dinov2": lambda: apply(dinov2.DINOv2(width=16, depth=2, heads=2), WIDE),
  "inception": lambda: apply(inception.InceptionV3(), WIDE),
  "random_conv": lambda: products(
    lambda images: random_conv.make(0, 3)(images), SMALL
  ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_networks_multiply_float32(name):
  lines = FROZEN[name]()
  assert lines
  assert not rounded(lines)


@pytest.mark.parametrize("family", [dit.SiT, dit.LightningDiT])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_embeddings_multiply_float32_whatever_the_blocks_do(family, dtype):
  network = family(
    channels=4, patch=2, width=16, depth=2, heads=2, snippet_dim=5,
    projector_depth=1, projector_width=6, token_dim=7, dtype=dtype,
  )  # fmt: skip
  t = jax.ShapeDtypeStruct((2,), jnp.float32)
  lines = apply(network, LATENT, t, VECTOR, project=True)
  exact = len(lines) - len(rounded(lines))
  # Two of the time's embedding, one of the snippet's.
  assert exact == 3
  if dtype == "bfloat16":
    assert len(lines) == exact, "a product outside the embeddings is float32"
