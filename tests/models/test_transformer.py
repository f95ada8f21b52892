"""Properties of the two families, whatever their weights."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from gmem_jax.convert import rules, transformer as convert
from gmem_jax.convert.names import dit
from gmem_jax.models import blocks, dit as dit_lib, layers
from tests import recipe

COMMON = {
  "channels": 3,
  "patch": 2,
  "width": 16,
  "depth": 2,
  "heads": 2,
  "snippet_dim": 5,
  "projector_depth": 1,
  "projector_width": 6,
  "token_dim": 7,
}
# Together they take both sides of every switch.
FAMILIES = {
  "sit": lambda **kw: dit_lib.SiT(**{**COMMON, **kw}),
  "published": lambda **kw: dit_lib.LightningDiT(**{**COMMON, **kw}),
  "switched": lambda **kw: dit_lib.LightningDiT(
    **{
      **COMMON,
      "swiglu": False,
      "rms_norm": False,
      "qk_norm": True,
      "shift": False,
      "learn_sigma": True,
      **kw,
    }
  ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
  return FAMILIES[request.param]


def _inputs(channels=3, side=8, snippet_dim=5, batch=2):
  kx, kt, kc = jax.random.split(jax.random.key(1), 3)
  x = jax.random.normal(kx, (batch, side, side, channels))
  t = jax.random.uniform(kt, (batch,))
  return x, t, jax.random.normal(kc, (batch, snippet_dim))


def _init(network, *inputs):
  return jax.jit(network.init)(jax.random.key(0), *(inputs or _inputs()))


def _weights(network, *inputs):
  """Weights that nothing has trained and no initialiser has set to zero."""
  shapes = jax.eval_shape(
    network.init, jax.random.key(0), *(inputs or _inputs())
  )
  random = np.random.default_rng(2)
  return jax.tree.map(
    lambda a: jnp.asarray(0.25 * random.standard_normal(a.shape), a.dtype),
    shapes,
  )


def _value_and_grad(network, variables):
  x, t, snippet = _inputs()

  def loss(variables):
    velocity, z = network.apply(
      variables,
      x,
      t,
      snippet,
      dropout_key=jax.random.key(3),
      project=True,
    )
    return jnp.mean(jnp.sin(velocity)) + jnp.mean(jnp.sin(z))

  return jax.jit(jax.value_and_grad(loss))(variables)


def _velocity(network, variables):
  return network.apply(variables, *_inputs())


def _paths(tree):
  return traverse_util.flatten_dict(tree["params"], sep="/")


def _assert_trees_close(actual, expected, tolerance):
  actual, expected = _paths(actual), _paths(expected)
  assert actual.keys() == expected.keys()
  for path, want in expected.items():
    scale = max(float(jnp.abs(want).max()), 1e-6)
    error = float(jnp.abs(actual[path] - want).max()) / scale
    assert error <= tolerance, f"{path}: {error:.1e}"


@pytest.mark.parametrize(
  "family",
  [
    "published",
    *(pytest.param(f, marks=pytest.mark.slow) for f in ("sit", "switched")),
  ],
  indirect=True,
)
def test_scan_and_remat_change_nothing(family):
  variables = _weights(family())
  value, grad = _value_and_grad(family(), variables)
  assert value != 0
  for scan, remat in [(True, "none"), (False, "dots"), (True, "full")]:
    network = family(scan_layers=scan, remat=remat)
    other, other_grad = _value_and_grad(network, variables)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    _assert_trees_close(other_grad, grad, 2e-5)


def test_initial_parameters_do_not_depend_on_scan_or_remat():
  family = FAMILIES["published"]
  plain = _init(family())
  other = _init(family(scan_layers=True, remat="full"))
  jax.tree.map(np.testing.assert_array_equal, plain, other)
  stack = plain["params"]["blocks"]
  assert {a.shape[0] for a in jax.tree.leaves(stack)} == {COMMON["depth"]}
  kernel = stack["attn"]["qkv"]["kernel"]
  assert not np.array_equal(kernel[0], kernel[1])


@pytest.mark.parametrize("scan", [False, True])
def test_remat_saves_memory(scan):
  """What the backward pass keeps shrinks from none to dots to full."""
  sizes = []
  for remat in blocks.REMAT:
    network = FAMILIES["published"](scan_layers=scan, remat=remat)
    variables = _weights(network)
    forward = functools.partial(_velocity, network)
    _, backward = jax.vjp(forward, variables)
    sizes.append(sum(a.nbytes for a in jax.tree.leaves(backward)))
  assert sizes[0] > sizes[1] > sizes[2]


def test_gradient_of_unstack_is_one_concatenation():
  stack = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.ones((4, 2, 2))}

  def loss(stack):
    rows = blocks.unstack(stack)
    return sum(
      (i + 1) * jnp.sum(a) for i, r in enumerate(rows) for a in r.values()
    )

  text = str(jax.make_jaxpr(jax.grad(loss))(stack))
  assert text.count("concatenate[") == len(stack)
  assert "pad[" not in text
  grad = jax.grad(loss)(stack)
  np.testing.assert_array_equal(grad["a"][:, 0], [1, 2, 3, 4])


def test_gradients_reach_every_trainable_parameter(family):
  # The rotation makes even the bias of the keys' norm matter to the softmax.
  _, grad = _value_and_grad(family(), _weights(family()))
  for path, g in _paths(grad).items():
    if path == "pos_embed":
      assert not np.any(g), "the position table is frozen"
    elif path.startswith("blocks/"):
      for i, layer in enumerate(g):
        assert np.abs(layer).max() > 1e-7, f"{path}, layer {i}"
    else:
      assert np.abs(g).max() > 1e-7, path


def test_bfloat16_is_close_and_returns_float32(family):
  variables = _weights(family())
  exact = family().apply(variables, *_inputs(), project=True)
  network = family(dtype="bfloat16")
  half = network.apply(variables, *_inputs(), project=True)
  for a, b in zip(half, exact, strict=True):
    assert a.dtype == jnp.float32
    error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
    # One rounding to bfloat16 is 4e-3.
    assert 1e-5 < error < 4e-2, error
  dtypes = {a.dtype for a in jax.tree.leaves(_weights(network))}
  assert dtypes == {jnp.dtype("float32")}


def test_samples_of_a_batch_do_not_mix(family):
  network = family()
  variables = _weights(network)
  x, t, snippet = _inputs()
  together = network.apply(variables, x, t, snippet)
  alone = network.apply(variables, x[1:], t[1:], snippet[1:])
  np.testing.assert_allclose(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_projection_taps_its_block():
  """Later blocks change the velocity and not the projected tokens."""
  for scan in (False, True):
    network = FAMILIES["published"](scan_layers=scan)
    variables = _weights(network)
    outputs = [network.apply(variables, *_inputs(), project=True)]
    for layer in (1, 0):  # After the projector's block, and that block.
      moved = jax.tree.map(
        lambda a, i=layer: a.at[i].add(0.1), variables["params"]["blocks"]
      )
      changed = {"params": {**variables["params"], "blocks": moved}}
      outputs.append(network.apply(changed, *_inputs(), project=True))
    (v, z), (v_after, z_after), (_, z_at) = outputs
    np.testing.assert_array_equal(z, z_after)
    assert not np.allclose(v, v_after)
    assert not np.allclose(z, z_at)


def test_lightning_dit_drops_elements_of_the_snippet():
  network = FAMILIES["published"](snippet_dim=40)
  x, t, snippet = _inputs(snippet_dim=40)
  variables = _weights(network, x, t, snippet)
  key = jax.random.key(4)
  mask = layers.keep_mask(key, network.snippet_dropout, snippet.shape)
  assert mask.any()
  assert not mask.all()
  dropped = layers.keep(snippet, mask, network.snippet_dropout)
  np.testing.assert_allclose(
    network.apply(variables, x, t, snippet, dropout_key=key),
    network.apply(variables, x, t, dropped),
    rtol=1e-5,
    atol=1e-6,
  )


def test_sit_drops_elements_of_the_embedded_snippet():
  network = FAMILIES["sit"]()
  x, t, snippet = _inputs(batch=1)
  variables = _weights(network, x, t, snippet)
  embed = variables["params"]["snippet_embed"]
  embedded = snippet @ embed["kernel"] + embed["bias"][None, :]
  key = jax.random.key(5)
  mask = layers.keep_mask(key, network.snippet_dropout, embedded.shape)
  assert not mask.all()
  # A layer that gives the dropped embedding for this one snippet.
  constant = {
    "kernel": jnp.zeros_like(embed["kernel"]),
    "bias": layers.keep(embedded, mask, network.snippet_dropout)[0],
  }
  changed = {"params": {**variables["params"], "snippet_embed": constant}}
  np.testing.assert_allclose(
    network.apply(variables, x, t, snippet, dropout_key=key),
    network.apply(changed, x, t, snippet),
    rtol=1e-4,
    atol=1e-5,
  )


def test_without_conditioning(family):
  network = family(conditioning="none")
  x, t, snippet = _inputs()
  variables = _weights(network, x, t, None)
  with_snippet = _weights(family())
  assert set(_paths(with_snippet)) - set(_paths(variables)) == {
    "snippet_embed/kernel",
    "snippet_embed/bias",
  }
  assert network.apply(variables, x, t, None).shape == x.shape
  with pytest.raises(ValueError, match="conditioning='none': takes no snippet"):
    network.apply(variables, x, t, snippet)


def test_without_projector(family):
  network = family(token_dim=0, projector_depth=99)
  variables = _weights(network)
  assert "projector" not in variables["params"]
  assert network.apply(variables, *_inputs()).shape == _inputs()[0].shape
  with pytest.raises(ValueError, match=r"a projector: token_dim=0"):
    network.apply(variables, *_inputs(), project=True)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"conditioning": "label"},
      r"conditioning='label': must be one of none, adaln, cross",
    ),
    (
      {"cross_every": 3},
      r"model\.cross_every=3: must divide config\.model\.depth=2",
    ),
    ({"remat": "all"}, r"model\.remat='all'.*none, dots, full"),
    ({"attention": "flash"}, r"model\.attention='flash'.*xla, cudnn, auto"),
    ({"attention": "cudnn"}, r"cudnn': needs dtype bfloat16.*not float32"),
    (
      {"attention": "cudnn", "dtype": "bfloat16", "heads": 4},
      "multiple of 8, not 4",
    ),
    ({"width": 18}, r"model\.width=18: must be a multiple of 4"),
    ({"heads": 3}, r"config\.model\.heads=3"),
    ({"heads": 8}, r"model\.rope=True.*multiple of 4, not 2"),
    ({"depth": 0}, r"config\.model\.depth=0: must be positive"),
    ({"projector_depth": 4}, r"model\.projector_depth=4: must lie in 1\.\."),
    ({"snippet_dropout": 1.0}, r"model\.snippet_dropout=1\.0.*\[0, 1\)"),
  ],
)
def test_impossible_networks_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    FAMILIES["published"](**fields)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"channels": 4}, "has 4 channels, the network is built for 3"),
    ({"side": 7}, r"is 7x7.*multiple of config\.model\.patch=2"),
    ({"side": 12}, "12 pixels wide, but these parameters are for 8"),
    ({"snippet_dim": 6}, "has 6 elements, the network is built for 5"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
  network = FAMILIES["sit"]()
  variables = _weights(network)
  with pytest.raises(ValueError, match=message):
    network.apply(variables, *_inputs(**change))


def test_oblong_latents_and_missing_snippets_are_refused():
  network = FAMILIES["sit"]()
  x, t, snippet = _inputs()
  with pytest.raises(ValueError, match="8x4; it must be square"):
    network.init(jax.random.key(0), x[:, :, :4], t, snippet)
  with pytest.raises(ValueError, match="'adaln': needs a snippet"):
    network.init(jax.random.key(0), x, t, None)


def test_sit_starts_at_zero():
  variables = _init(FAMILIES["sit"]())
  paths = _paths(variables)
  zero = {p for p, a in paths.items() if p.endswith("kernel") and not a.any()}
  assert zero == {
    "blocks/modulation/kernel",
    "final/modulation/kernel",
    "final/linear/kernel",
  }
  assert not FAMILIES["sit"]().apply(variables, *_inputs()).any()


def test_initial_moments_are_the_published_ones():
  """Means, spreads and ranges of a fresh LightningDiT-B/1."""
  moments = json.loads(
    (recipe.MANIFESTS / "init_stats_lightningdit-b-1.json").read_text()
  )
  channels = moments["x_embedder.proj.weight"]["shape"][1]
  tokens = moments["pos_embed"]["shape"][1]
  # Blocks are alike, so that two stand for the first and the last.
  size = {**dit_lib.LIGHTNING_DIT_SIZES["B/1"], "depth": 2}
  network = dit_lib.LightningDiT(channels=channels, projector_depth=1, **size)
  side = round(tokens**0.5)
  variables = _init(network, *_inputs(channels, side, 768))
  state_dict = rules.to_torch(
    dit.table(network),
    variables["params"],
    {
      name: shape
      for name, shape in convert.state_dict_shapes(network, side).items()
      if not name.startswith("feat_rope")
    },
  )
  last = max(int(n.split(".")[1]) for n in moments if n.startswith("blocks."))
  compared = set()
  for name, expected in moments.items():
    if name.startswith("feat_rope."):
      continue
    a = state_dict[name.replace(f"blocks.{last}.", "blocks.1.")]
    a = np.asarray(a, np.float64)
    assert list(a.shape) == expected["shape"], name
    std, n = expected["std"], a.size
    # Four standard errors of both samples.
    assert abs(a.mean() - expected["mean"]) <= 6 * std / n**0.5 + 1e-7, name
    assert abs(a.std() - std) <= 6 * std / n**0.5 + 1e-7, name
    if "t_embedder" not in name:  # Those are normal, the others bounded.
      np.testing.assert_allclose(a.min(), expected["min"], rtol=2e-3)
      np.testing.assert_allclose(a.max(), expected["max"], rtol=2e-3)
    compared.add(name.replace(f"blocks.{last}.", "blocks.1."))
  assert compared == set(state_dict)


@pytest.mark.parametrize(
  ("name", "module", "size", "channels"),
  [
    ("lightningdit-b-1", dit_lib.LightningDiT, "B/1", 32),
    ("lightningdit-xl-1", dit_lib.LightningDiT, "XL/1", 32),
    ("sit-xl-2", dit_lib.SiT, "XL/2", 4),
  ],
)
def test_published_sizes(name, module, size, channels):
  """Every name and shape, and the number of parameters."""
  manifest = json.loads((recipe.MANIFESTS / f"{name}.json").read_text())
  shapes = recipe.manifest_shapes(name)
  sizes = (
    dit_lib.SIT_SIZES if module is dit_lib.SiT else dit_lib.LIGHTNING_DIT_SIZES
  )
  network = module(channels=channels, **sizes[size])
  kind = "sit" if module is dit_lib.SiT else "lightning_dit"
  assert convert.read_network(kind, shapes) == network
  grid = round(shapes["pos_embed"][1] ** 0.5)
  assert shapes == convert.state_dict_shapes(network, grid)

  side = round(shapes["pos_embed"][1] ** 0.5) * network.patch
  params = jax.eval_shape(
    network.init, jax.random.key(0), *_inputs(channels, side, 768)
  )["params"]
  count = sum(a.size for a in jax.tree.leaves(params))
  assert count == manifest["parameters"]
  trainable = count - params["pos_embed"].size
  assert trainable == manifest["trainable_parameters"]


@pytest.mark.parametrize(
  ("family", "sizes"),
  [
    (dit_lib.SiT, dit_lib.SIT_SIZES),
    (dit_lib.LightningDiT, dit_lib.LIGHTNING_DIT_SIZES),
  ],
)
def test_every_size_can_be_built(family, sizes):
  widths = {"S": 384, "B": 768, "L": 1024, "XL": 1152}
  widths |= {"1p0B": 1536, "1p6B": 1792}
  for name, size in sizes.items():
    network = family(channels=4, **size)
    width, patch = name.split("/")
    assert (network.width, network.patch) == (widths[width], int(patch))
    assert isinstance(network, nn.Module)
