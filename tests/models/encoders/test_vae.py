"""Autoencoders against the published code, diffusers and their own contract."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from gmem_jax.convert import identify, rules
from gmem_jax.convert.detect import Contents
from gmem_jax.convert.names import vae as names
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.models.encoders import vae, vae_layers
from tests import recipe

# Relative to an array's maximum, float32 on the CPU. Reached: 4e-6 with the
# goldens, 8e-6 with diffusers at the published size.
TOLERANCE = 1e-4
DIFFUSERS_TOLERANCE = 2e-5


def _params(state_dict):
  return rules.to_flax(names.table(state_dict), state_dict)


def _network_shapes(state_dict):
  """Shapes of what a file has of the network; the rest is the training's."""
  parts = ("encoder", "decoder", "quant_conv", "post_quant_conv")
  kept = {n: t.shape for n, t in state_dict.items() if n.split(".")[0] in parts}
  assert kept
  return kept


def _check(params, model):
  """The parameters are those of a network, all of them and no others."""
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    lambda x: x.shape, _abstract_params(model)
  )


def _assert_close(actual, nchw, tolerance=TOLERANCE):
  """Largest error relative to the largest magnitude of the expected array."""
  actual = np.moveaxis(np.asarray(actual), -1, 1)
  assert actual.shape == nchw.shape
  error = np.abs(actual - nchw).max() / np.abs(nchw).max()
  assert error <= tolerance, f"relative error {error:.2e}"


def _nhwc(x):
  return jnp.asarray(np.moveaxis(x, 1, -1))


def _abstract_params(model):
  images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _encode(model, params, images):
  return model.apply({"params": params}, images, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _decode(model, params, latents):
  return model.apply({"params": params}, latents, method="decode")


@functools.partial(jax.jit, static_argnums=0)
def _encode_in_steps(model, params, images):
  """What the encoder gives, and the posterior made of it."""
  return model.apply(
    {"params": params},
    images,
    method=lambda m, x: (m.encoder(x), m.encode(x)),
  )


def _compare_with_golden(data, state_dict):
  """Holds the network against every set of images that a file has."""
  config = json.loads(str(data["config"]))
  params = _params(state_dict)
  model = names.network(_network_shapes(state_dict), config["num_groups"])
  _check(params, model)
  assert model.latent_channels == config["embed_dim"]
  assert model.ch == config["ch"]
  assert model.ch_mult == tuple(config["ch_mult"])

  suffix = "_image_u8_nchw"
  prefixes = [k.removesuffix(suffix) for k in data.files if k.endswith(suffix)]
  assert prefixes, f"no images among {data.files}"
  for prefix in prefixes:
    golden = {
      k.removeprefix(f"{prefix}_"): data[k]
      for k in data.files
      if k.startswith(f"{prefix}_")
    }
    images = golden["image_u8_nchw"].astype(np.float32) / 255 * 2 - 1
    with jax.default_matmul_precision("highest"):
      features, posterior = _encode_in_steps(model, params, _nhwc(images))
      decoded = _decode(model, params, _nhwc(golden["z"]))
    _assert_close(features, golden["encoder_out"])
    _assert_close(posterior.mean, golden["mean"])
    _assert_close(posterior.logvar, golden["logvar"])
    # From the stored posterior: exp(logvar / 2) reaches e^10, which would
    # magnify the rounding of the encoder.
    stored = vae.Posterior(_nhwc(golden["mean"]), _nhwc(golden["logvar"]))
    noise = _nhwc(golden["sample_noise"])
    _assert_close(stored.sample(noise=noise), golden["sample"])
    _assert_close(decoded, golden["decoded"])
    u8 = np.clip(np.asarray(decoded) * 127.5 + 128, 0, 255).astype(np.uint8)
    off = np.abs(u8.astype(int) - golden["decoded_u8_nhwc"].astype(int))
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-2


@pytest.mark.golden
def test_published_file_layout_golden(golden_dir):
  file = torch_file.load(golden_dir / "vavae_tiny.pt")
  data = np.load(golden_dir / "vavae_tiny.npz")
  for key in json.loads(str(data["ignored_keys"])):
    assert key in file["state_dict"]
  _compare_with_golden(data, file["state_dict"])


def _recipe(data):
  """The state dict of a recipe file; without a list it has published names."""
  if "keys" in data.files:
    shapes = recipe.listed_shapes(data["keys"])
  else:
    shapes = recipe.manifest_shapes("vavae_f16d32")
  seed = json.loads(str(data["config"]))["recipe_seed"]
  return recipe.recipe_state_dict(seed, shapes)


@pytest.mark.golden
def test_32_groups_golden(golden_dir):
  data = np.load(golden_dir / "vavae_recipe_ch32.npz")
  _compare_with_golden(data, _recipe(data))


@pytest.mark.golden
@pytest.mark.slow
def test_published_size_golden(golden_dir):
  data = np.load(golden_dir / "vavae_recipe_full.npz")
  _compare_with_golden(data, _recipe(data))


def _shape_tree(shapes):
  """State dict of arrays that take no memory, for tests of names alone."""
  zero = np.zeros((), np.float32)
  return {k: np.broadcast_to(zero, shape) for k, shape in shapes.items()}


@pytest.mark.parametrize(
  ("variant", "manifest"),
  [("va_vae", "vavae_f16d32"), ("mar_vae", "marvae_f16d16")],
)
def test_variants_have_the_published_parameters(variant, manifest):
  shapes = recipe.manifest_shapes(manifest)
  params = _params(_shape_tree(shapes))
  _check(params, vae.VARIANTS[variant])
  assert names.network(shapes) == vae.VARIANTS[variant]
  back = rules.to_torch(names.LDM, params, shapes)
  assert {k: v.shape for k, v in back.items()} == shapes


TINY = vae.AutoencoderKL(
  latent_channels=3,
  ch=8,
  ch_mult=(1, 2),
  num_res_blocks=1,
  encoder_attention=(1,),
  decoder_attention=(0, 1),
  num_groups=4,
)


@pytest.fixture(scope="module")
def tiny():
  """Random parameters of TINY and images in [-1, 1]."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    noise = rng.normal(size=x.shape)
    if path[-1].key == "kernel":
      noise /= np.sqrt(np.prod(x.shape[:-1]))
    else:
      noise = 0.1 * noise + (path[-1].key == "scale")
    return jnp.asarray(noise, x.dtype)

  params = jax.tree_util.tree_map_with_path(draw, _abstract_params(TINY))
  images = rng.uniform(-1, 1, (2, 8, 12, 3))
  return params, jnp.asarray(images, jnp.float32)


def test_network_is_read_off_its_parameters(tiny):
  state_dict = rules.to_torch(names.LDM, tiny[0])
  assert names.network(_network_shapes(state_dict), num_groups=4) == TINY


def test_names_round_trip_bitwise(tiny):
  params = jax.tree.map(np.asarray, tiny[0])
  state_dict = rules.to_torch(names.LDM, params)
  assert "decoder.up.1.attn.1.proj_out.weight" in state_dict
  back = _params(state_dict)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_foreign_names_are_ignored_and_no_others(tiny):
  state_dict = rules.to_torch(names.LDM, tiny[0])
  extra = np.zeros(3, np.float32)
  for foreign in ("loss.logvar", "foundation_model.x.y", "linear_proj.weight"):
    state_dict[foreign] = extra
  _check(_params(state_dict), TINY)
  for unknown in ("encoder.quant.weight", "lossy.x", "decoder.loss.x"):
    with pytest.raises(rules.NamesError, match=unknown):
      _params({**state_dict, unknown: extra})


def test_every_missing_or_misshapen_parameter_is_listed(tiny):
  state_dict = rules.to_torch(names.LDM, tiny[0])
  del state_dict["encoder.mid.block_2.conv1.weight"]
  del state_dict["quant_conv.bias"]
  state_dict["decoder.norm_out.weight"] = np.zeros(5, np.float32)
  with pytest.raises(rules.NamesError) as error:
    identify.identify(Contents("vae", state_dict), {"num_groups": 4})
  assert sorted(error.value.problems) == [
    "decoder.norm_out.weight: shape [5], expected [8]"
    " (beside decoder.norm_out.bias of [8])",
    "encoder.mid.block_2.conv1.weight: missing",
    "quant_conv.bias: missing",
  ]
  del state_dict["encoder.conv_in.weight"]
  with pytest.raises(rules.NamesError) as error:
    names.network(_network_shapes(state_dict))
  assert error.value.problems == ("encoder.conv_in.weight: missing",)


def test_other_networks_are_refused():
  with pytest.raises(ValueError, match="not an autoencoder"):
    names.table(["blocks.0.attn.qkv.weight"])


def _diffusers_model(torch, model):
  """diffusers' network of the same size, with weights that are not zero."""
  diffusers = pytest.importorskip("diffusers", reason='needs extra "oracle"')
  levels = len(model.ch_mult)
  torch.manual_seed(0)
  oracle = diffusers.AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * levels,
    up_block_types=("UpDecoderBlock2D",) * levels,
    block_out_channels=tuple(model.ch * m for m in model.ch_mult),
    layers_per_block=model.num_res_blocks,
    latent_channels=model.latent_channels,
    norm_num_groups=model.num_groups,
  ).eval()
  with torch.no_grad():
    for name, parameter in oracle.named_parameters():
      if "norm" in name or name.endswith("bias"):
        parameter += 0.1 * torch.randn_like(parameter)
  return oracle


def _rename_attention(state_dict):
  """The names that older releases of diffusers wrote."""
  old_names = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
  }
  renamed = {}
  for name, value in state_dict.items():
    for new, old in old_names.items():
      name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    renamed[name] = value
  assert renamed.keys() != state_dict.keys()
  return renamed


SMALL_SD = vae.VARIANTS["sd_vae"].clone(ch=16, num_groups=8)


@pytest.mark.torch
@pytest.mark.parametrize(
  "model",
  [
    pytest.param(SMALL_SD, id="small"),
    pytest.param(
      vae.VARIANTS["sd_vae"], id="published", marks=pytest.mark.slow
    ),
  ],
)
def test_sd_vae_equals_diffusers(model):
  torch = pytest.importorskip("torch", reason='needs extra "oracle"')
  oracle = _diffusers_model(torch, model)
  state_dict = {k: v.numpy() for k, v in oracle.state_dict().items()}
  params = _params(state_dict)
  _check(params, model)
  back = rules.to_torch(names.table(state_dict), params)
  assert back.keys() == state_dict.keys()
  for name, value in back.items():
    np.testing.assert_array_equal(value, state_dict[name])
  old = _params(_rename_attention(state_dict))
  assert jax.tree.structure(old) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, old, params)

  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (2, 3, 32, 48)).astype(np.float32)
  latents = rng.normal(size=(2, 4, 4, 6)).astype(np.float32)
  with torch.no_grad():
    expected = oracle.encode(torch.from_numpy(images)).latent_dist
    decoded = oracle.decode(torch.from_numpy(latents)).sample.numpy()
  with jax.default_matmul_precision("highest"):
    posterior = _encode(model, params, _nhwc(images))
    result = _decode(model, params, _nhwc(latents))
  for ours, theirs in (
    (posterior.mean, expected.mean.numpy()),
    (posterior.logvar, expected.logvar.numpy()),
    (result, decoded),
  ):
    _assert_close(ours, theirs, DIFFUSERS_TOLERANCE)


def test_sd_vae_has_the_published_size():
  model = vae.VARIANTS["sd_vae"]
  assert (
    sum(x.size for x in jax.tree.leaves(_abstract_params(model))) == 83_653_863
  )
  assert model.downsampling == 8
  assert model.latent_scale == 0.18215


def test_posterior_sample_statistics():
  shape = (1, 200, 200, 2)
  mean = jnp.broadcast_to(jnp.array([1.0, -2.0]).reshape(1, 1, 1, 2), shape)
  logvar = jnp.full(shape, 2 * jnp.log(3.0))
  sample = vae.Posterior(mean, logvar).sample(jax.random.key(0))
  # Five standard errors of 40,000 draws.
  np.testing.assert_allclose(
    sample.mean((0, 1, 2)), [1.0, -2.0], atol=5 * 3 / 200
  )
  np.testing.assert_allclose(
    sample.std((0, 1, 2)), [3.0, 3.0], atol=5 * 3 / (200 * np.sqrt(2))
  )


def test_posterior_sample_takes_a_key_or_noise():
  posterior = vae.Posterior(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)))
  key = jax.random.key(0)
  noise = jax.random.normal(key, posterior.mean.shape)
  np.testing.assert_array_equal(posterior.sample(key), noise)
  np.testing.assert_array_equal(posterior.sample(noise=noise), noise)
  with pytest.raises(ValueError, match="neither"):
    posterior.sample()
  with pytest.raises(ValueError, match="both"):
    posterior.sample(key, noise=noise)


def test_logvar_is_clamped(tiny):
  params, images = tiny
  c = TINY.latent_channels
  extremes = jnp.array([-1e3, 1e3, 0.0])
  bias = params["quant_conv"]["bias"].at[c:].set(extremes)
  params = {**params, "quant_conv": {**params["quant_conv"], "bias": bias}}
  posterior = _encode(TINY, params, images)
  np.testing.assert_array_equal(posterior.logvar[..., 0], vae.LOGVAR_MIN)
  np.testing.assert_array_equal(posterior.logvar[..., 1], vae.LOGVAR_MAX)
  assert (jnp.abs(posterior.logvar[..., 2]) < 20).all()


def test_shapes_and_reconstruction_of_init(tiny):
  params, images = tiny
  posterior = _encode(TINY, params, images)
  assert posterior.mean.shape == (2, 4, 6, 3)
  assert TINY.downsampling == 2
  reconstruction = jax.jit(TINY.apply)({"params": params}, images)
  np.testing.assert_allclose(
    reconstruction, _decode(TINY, params, posterior.mean), atol=1e-5
  )


@pytest.mark.parametrize("hw", [(17, 16), (16, 17)])
def test_odd_sides_are_refused(tiny, hw):
  images = jnp.zeros((1, *hw, 3))
  with pytest.raises(ValueError, match=rf"{hw[0]} x {hw[1]} .*multiples of 2"):
    _encode(TINY, tiny[0], images)


def test_moments_are_refused_as_latents(tiny):
  with pytest.raises(ValueError, match=r"6 channels.*has 3"):
    _decode(TINY, tiny[0], jnp.zeros((1, 4, 4, 6)))


def test_bfloat16_computes_in_bfloat16_within_tolerance(tiny):
  params, images = tiny
  half = TINY.clone(dtype=jnp.bfloat16)
  assert _abstract_params(half) == _abstract_params(TINY)

  exact, rough = (_encode(m, params, images) for m in (TINY, half))
  assert rough.mean.dtype == rough.logvar.dtype == jnp.float32
  decoded = [_decode(m, params, exact.mean) for m in (TINY, half)]
  assert decoded[1].dtype == jnp.float32
  for a, b in [(exact.mean, rough.mean), (decoded[0], decoded[1])]:
    error = jnp.abs(a - b).max() / jnp.abs(a).max()
    # 8 bits of mantissa: 4e-3 per operation. Zero would mean float32.
    assert 1e-4 < error < 3e-2


@pytest.mark.parametrize(
  ("dtype", "offset"), [(jnp.float32, 3000), (jnp.bfloat16, 200)]
)
def test_group_norm_is_exact_far_from_zero(dtype, offset):
  # E[x^2] - E[x]^2 would lose these variances, and so would bfloat16, whose
  # integers end at 256.
  x = np.random.default_rng(0).integers(-3, 4, (2, 8, 8, 8)) + float(offset)
  groups = x.reshape(2, 64, 4, 2)
  mean = groups.mean((1, 3), keepdims=True)
  var = groups.var((1, 3), keepdims=True)
  expected = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)

  block = vae_layers.ResBlock(8, num_groups=4, dtype=dtype)
  _, state = jax.jit(
    functools.partial(block.init_with_output, capture_intermediates=True)
  )(jax.random.key(0), jnp.asarray(x, dtype))
  normed = state["intermediates"]["norm_1"]["__call__"][0]
  assert normed.dtype == jnp.float32
  np.testing.assert_allclose(normed, expected, atol=1e-3)


def test_gradients_reach_every_parameter(tiny):
  params, images = tiny

  def loss(params):
    posterior = TINY.apply({"params": params}, images, method="encode")
    reconstructions = TINY.apply(
      {"params": params},
      posterior.sample(jax.random.key(0)),
      method="decode",
    )
    return jnp.mean((reconstructions - images) ** 2)

  grads = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
  # Softmax does not see what the key's bias adds to all logits of a query.
  still = {k for k, g in grads.items() if jnp.abs(g).max() < 1e-6}
  assert still == {k for k in grads if k.endswith("k/bias")}
