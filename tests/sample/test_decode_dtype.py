"""Decoding in bfloat16, as config.sample.decode_dtype asks for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax import rngs
from gmem_jax.bench import sample
from gmem_jax.commands import programs
from gmem_jax.data import load_encoders
from gmem_jax.models.encoders import protocols, vae
from gmem_jax.parallel import sharding
from tests.bench import shapes

TINY = vae.AutoencoderKL(ch=32, ch_mult=(1, 2), latent_channels=4)


@pytest.fixture(scope="module")
def tokenizer():
  images = jnp.zeros((1, 8, 8, 3))
  params = TINY.init(rngs.key(0, "init"), images)["params"]
  return vae.VAETokenizer(name="va_vae", network=TINY, params=params)


def test_bfloat16_moves_pixels_by_little(tokenizer):
  latents = jax.random.normal(rngs.key(1, "init"), (2, 4, 4, 4))
  half = load_encoders.decoder(tokenizer, "bfloat16")
  whole, rough = (
    np.asarray(
      protocols.to_uint8(jax.jit(lambda t, x: t.decode(x))(t, latents), 128.0)
    ).astype(int)
    for t in (tokenizer, half)
  )
  assert whole.std() > 5
  assert 0 < np.abs(whole - rough).max() <= 6
  assert np.abs(whole - rough).mean() < 1


def test_float32_is_the_tokenizer_as_it_was(tokenizer):
  assert load_encoders.decoder(tokenizer, "float32").network == TINY.clone(
    dtype="float32"
  )
  without = protocols.IdentityTokenizer()
  assert load_encoders.decoder(without, "bfloat16") is without


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sampler_decodes_as_the_config_says(dtype):
  config = sample.parse(
    shapes.arguments(
      encoder__tokenizer="va_vae",
      encoder__image_size=256,
      sample__decode_dtype=dtype,
      sampler__steps=3,
    )
  ).recipe
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 1, 1), jax.devices()[:1])
  program = programs.sampling(config, mesh, 1)
  text = str(program.jitted.trace(*program.arguments).jaxpr)
  convolutions = [
    line for line in text.splitlines() if "conv_general_dilated" in line
  ]
  short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
  assert len(convolutions) > 20
  assert all(f":{short}[" in line for line in convolutions)
