"""The networks against numbers that the published PyTorch code computed."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.convert import rules, transformer as convert
from gmem_jax.convert.names import dit
from gmem_jax.models import dit as dit_lib, layers
from tests import recipe
from tests.models import networks

pytestmark = pytest.mark.golden

FAMILY = {
  "LightningDiT": (dit_lib.LightningDiT, dit_lib.LIGHTNING_DIT_SIZES),
  "SiT": (dit_lib.SiT, dit_lib.SIT_SIZES),
}


@pytest.fixture(autouse=True)
def _exact_products():
  with jax.default_matmul_precision("highest"):
    yield


@pytest.fixture(
  params=[*networks.WEIGHTS, "one projector more"], scope="module"
)
def golden(request, golden_dir, tmp_path_factory):
  if request.param in networks.WEIGHTS:
    return networks.load(golden_dir, request.param)
  directory = tmp_path_factory.mktemp("golden")
  networks.add_projector(golden_dir, directory)
  return networks.load(directory, "sit_tiny")


@pytest.fixture(scope="module")
def train_mode(golden):
  """The network with its projector, as a function of x, t and the snippet."""
  network = golden.network.clone(scan_layers=True)  # Fast to compile.
  return jax.jit(
    lambda *args: network.apply({"params": golden.params}, *args, project=True)
  )


def _layers(network, params, x, t, snippet):
  """Every intermediate result, under the names of the golden files."""
  whole = network.clone(scan_layers=True)  # Fast to compile.
  _, seen = jax.jit(functools.partial(_inside, whole))(params, x, t, snippet)
  out = {
    "x_patch": seen["patch_embed"],
    "x_tokens": seen["patch_embed"] + params["pos_embed"],
    "t_freq": layers.timestep_features(t),
    "t_emb": seen["time_embed"],
    "c_emb": seen["snippet_embed"],
    "final_layer": seen["final"],
  }
  cond = nn.silu(out["t_emb"] + out["c_emb"])
  rope = network.rope_tables(networks.grid(network, x))
  tokens = out["x_tokens"]
  block = jax.jit(
    lambda layer, tokens: _inside(network.block(), layer, tokens, cond, rope)
  )
  for i, layer in enumerate(network.ready(params)["blocks"].layers):
    tokens, seen = block(layer, tokens)
    out[f"block{i}"] = tokens
    for name in ("norm1", "attn", "norm2", "mlp"):
      out[f"block{i}_{name}"] = seen[name]
  return out


def _inside(module, params, *args):
  """What a module returns, and what each of its parts does."""
  out, state = module.apply(
    {"params": params},
    *args,
    capture_intermediates=True,
    mutable=["intermediates"],
  )
  parts = state["intermediates"]
  return out, {
    name: part["__call__"][0]
    for name, part in parts.items()
    if name != "__call__"
  }


def test_velocity(golden):
  velocity = jax.jit(golden.network.apply)(
    {"params": golden.params}, *golden.inputs()
  )
  keys = [k for k in ("out", "out_eval", "out_eval_f64") if k in golden.data]
  assert keys
  for key in keys:
    networks.assert_close(networks.nchw(velocity), golden.data[key], key)


def test_intermediates(golden):
  keys = [k for k in golden.data if k.startswith("mid_")]
  # Only the second weights of a trainer's file come with their output alone.
  assert keys or golden.name.endswith("_model")
  if not keys:
    return
  seen = _layers(golden.network, golden.params, *golden.inputs())
  for key in keys:
    networks.assert_close(seen[key.removeprefix("mid_")], golden.data[key], key)


def test_projected_tokens(golden, train_mode):
  keys = {
    k: golden.data[k]
    for k in golden.data
    if re.fullmatch(r"z\d+|z_train_nodrop_every\d+", k)
  }
  if not keys:
    assert not any(k.startswith("out_train") for k in golden.data)
    return
  velocity, z = train_mode(*golden.inputs())
  projected = z if isinstance(z, tuple) else (z,)
  assert len(projected) == len(golden.network.token_dims)
  seen = set()
  for key, expected in keys.items():
    step = networks.every(key, "z_train_nodrop") or 1
    index = 0 if "_" in key else int(key[1:])
    seen.add(index)
    tokens = np.asarray(projected[index])[..., ::step]
    networks.assert_close(tokens, expected, key)
  assert seen == set(range(len(projected)))
  for key in ("out", "out_train_nodrop"):
    if key in golden.data:
      networks.assert_close(networks.nchw(velocity), golden.data[key], key)


def test_dropout_of_a_given_mask(golden, train_mode):
  if "drop_keep" not in golden.data:
    assert not any("_drop" in k for k in golden.data)
    return
  x, t, c = golden.inputs()
  mask = jnp.asarray(golden.data["drop_keep"])
  # The network drops elements of the raw snippet; test_transformer checks that.
  dropped = layers.keep(c, mask, golden.network.snippet_dropout)
  velocity, z = train_mode(x, t, dropped)
  expected = golden.data["out_train_drop"]
  networks.assert_close(networks.nchw(velocity), expected, "out_train_drop")
  keys = [k for k in golden.data if networks.every(k, "z_train_drop")]
  assert keys
  for key in keys:
    step = networks.every(key, "z_train_drop")
    networks.assert_close(np.asarray(z)[..., ::step], golden.data[key], key)


def test_tables(golden):
  x = golden.inputs()[0]
  side, network = networks.grid(golden.network, x), golden.network
  rope = network.rope_tables(side)
  assert (rope is not None) == ("feat_rope.freqs_cos" in golden.state_dict)
  if rope is not None:
    for table, name in zip(rope, ("cos", "sin"), strict=True):
      expected = golden.state_dict[f"feat_rope.freqs_{name}"]
      networks.assert_close(np.repeat(table, 2, axis=-1), expected, name)
      if f"rope_{name}" in golden.data:
        np.testing.assert_array_equal(golden.data[f"rope_{name}"], expected)
  # The file's table, which need not be the analytic one, is what is used.
  np.testing.assert_array_equal(
    golden.params["pos_embed"], golden.state_dict["pos_embed"]
  )
  if "pos_embed" in golden.data:
    table = golden.data["pos_embed"]
    np.testing.assert_array_equal(table, golden.params["pos_embed"])
    # An average of weights drifts off the analytic table (here by design).
    if not golden.name.endswith("_ema"):
      ours = layers.sincos_positions(side, network.width)
      networks.assert_close(ours, table, "pos_embed")


def test_network_is_read_off_the_file(golden):
  shapes = {name: a.shape for name, a in golden.state_dict.items()}
  network = golden.network
  # What no tensor tells; the file of a rotated or normalised q tells heads.
  known = {"projector_depth": network.projector_depth}
  known["snippet_dropout"] = network.snippet_dropout
  if not (network.style.rope or network.style.qk_norm):
    known["heads"] = network.heads
  kind = "sit" if isinstance(network, dit_lib.SiT) else "lightning_dit"
  assert convert.read_network(kind, shapes, **known) == network
  grid = round(shapes["pos_embed"][1] ** 0.5)
  assert shapes == convert.state_dict_shapes(network, grid)


def test_weights_survive_the_round_trip(golden):
  shapes = {name: a.shape for name, a in golden.state_dict.items()}
  kept = rules.buffers(dit.table(golden.network), golden.state_dict)
  for name in kept:
    del shapes[name]
  back = rules.to_torch(dit.table(golden.network), golden.params, shapes)
  assert sorted({**back, **kept}) == sorted(golden.state_dict)
  for name, array in {**back, **kept}.items():
    np.testing.assert_array_equal(array, golden.state_dict[name])


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["lightningdit_recipe_full", "sit_recipe_full"]
)
def test_published_size(golden_dir, name):
  with np.load(golden_dir / f"{name}.npz", allow_pickle=False) as file:
    data = dict(file)
  x, t, c = networks.inputs(data)
  family, size = str(data["model"]).split("-")
  network_class, sizes = FAMILY[family]
  network = network_class(
    channels=x.shape[-1], snippet_dim=c.shape[-1], **sizes[size]
  )
  side = networks.grid(network, x)
  weights = recipe.recipe_state_dict(
    int(data["recipe_seed"]),
    convert.state_dict_shapes(network, side),
    skip=lambda key: key == "pos_embed" or key.startswith("feat_rope."),
  )
  weights["pos_embed"] = layers.sincos_positions(side, network.width)
  params = networks.to_flax(network, weights)
  del weights

  velocity = network.apply({"params": params}, x, t, c)
  networks.assert_close(networks.nchw(velocity), data["out"], "out")
  seen = _layers(network, params, x, t, c)
  keys = [k for k in data if k.startswith("mid_")]
  assert keys
  for key in keys:
    match = re.fullmatch(r"mid_(block\d+)_tokens_every(\d+)", key)
    assert match, f"unknown key {key}"
    tokens = np.asarray(seen[match[1]])[:, :: int(match[2])]
    assert tokens.shape[-1] % data[key].shape[-1] == 0
    step = tokens.shape[-1] // data[key].shape[-1]
    networks.assert_close(tokens[..., ::step], data[key], key)
