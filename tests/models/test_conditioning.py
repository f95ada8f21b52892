"""Cross-attention to retrieved neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.models import blocks, conditioning, dit
from gmem_jax.train import init_from
from tests.models import networks

COMMON = {
  "channels": 3,
  "patch": 2,
  "width": 16,
  "depth": 4,
  "heads": 2,
  "snippet_dim": 5,
  "projector_depth": 2,
  "projector_width": 6,
  "token_dim": 7,
  "scan_layers": True,  # Fast to compile.
}
FAMILIES = {"sit": dit.SiT, "lightning_dit": dit.LightningDiT}
# The small published networks; `b` is of the same kind as `a`.
FAST = ("lightningdit_a", "sit_tiny")
GOLDEN = [
  name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
  for name in networks.WEIGHTS
  if not name.startswith("lightningdit_b")
]


def make(family="lightning_dit", kind="adaln+cross", **fields):
  return FAMILIES[family](**{**COMMON, "conditioning": kind, **fields})


def inputs(kind="adaln+cross", batch=2, neighbours=3):
  kx, kt, kc, kn, ks = jax.random.split(jax.random.key(1), 5)
  found = jax.random.normal(kn, (batch, neighbours, 5))
  scores = jax.random.uniform(ks, (batch, neighbours))
  return (
    jax.random.normal(kx, (batch, 8, 8, 3)),
    jax.random.uniform(kt, (batch,)),
    jax.random.normal(kc, (batch, 5)) if "adaln" in kind else None,
    conditioning.Neighbours(found, scores),
  )


def weights(network, *args):
  """Weights that nothing has trained and no initialiser has set to zero."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), *args)["params"]
  random = np.random.default_rng(2)
  return jax.tree.map(
    lambda a: jnp.asarray(0.25 * random.standard_normal(a.shape), a.dtype),
    shapes,
  )


def bits(x):
  return np.asarray(x).view(np.uint32)


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN)
def test_converted_weights_begin_unchanged(golden_dir, name):
  """Bit for bit: the fresh cross-attention adds exactly nothing."""
  golden = networks.load(golden_dir, name)
  x, t, c = golden.inputs()
  network = golden.network.clone(scan_layers=True)
  cross = network.clone(conditioning="adaln+cross")
  shape = (x.shape[0], 3, c.shape[-1])
  found = jax.random.normal(jax.random.key(0), shape)
  neighbours = conditioning.Neighbours(found, jnp.full(shape[:2], 0.9))
  fresh = jax.jit(cross.init)(jax.random.key(1), x, t, c, neighbours)
  params = init_from.merge(fresh["params"], golden.params, "the golden file")
  assert params["cross"]["kv"]["kernel"].any()
  plain = jax.jit(
    lambda p: network.apply({"params": p}, x, t, c, project=True)
  )(golden.params)
  apply = jax.jit(
    lambda p, n: cross.apply({"params": p}, x, t, c, n, project=True)
  )
  # A network with several projectors returns as many arrays of tokens.
  for ours, theirs in zip(
    jax.tree.leaves(apply(params, neighbours)),
    jax.tree.leaves(plain),
    strict=True,
  ):
    np.testing.assert_array_equal(bits(ours), bits(theirs))

  # It would not be the same if the cross-attention were not fresh.
  proj = params["cross"]["proj"]
  shape = proj["kernel"].shape
  proj["kernel"] = jax.random.normal(jax.random.key(2), shape)
  changed = apply(params, neighbours)[0] - plain[0]
  assert np.abs(np.asarray(changed)).max() > 1e-3


def test_attention_is_the_documented_one():
  layer = conditioning.CrossAttention(heads=2, rms_norm=True, dtype="float32")
  k = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(k[0], (1, 4, 8))
  memory = conditioning.MemoryTokens(
    tokens=jax.random.normal(k[1], (1, 3, 8)),
    scores=jnp.array([[0.9, 0.2, 0.7]]),
    present=jnp.array([[True, True, False]]),
  )
  params = weights(layer, x, memory)
  y = np.asarray(layer.apply({"params": params}, x, memory))[0]

  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  tokens = np.asarray(x[0], np.float64)
  normed = tokens / np.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-6)
  q = (normed * p["norm"]["scale"]) @ p["q"]["kernel"] + p["q"]["bias"]
  kv = np.asarray(memory.tokens[0]) @ p["kv"]["kernel"] + p["kv"]["bias"]
  out = np.zeros((4, 8))
  for head in range(2):
    at = slice(4 * head, 4 * head + 4)
    key, value = kv[:2, :8][:, at], kv[:2, 8:][:, at]
    logits = q[:, at] @ key.T / 2
    logits += p["score_scale"][head] * np.array([0.9, 0.2])
    e = np.exp(logits)
    out[:, at] = e @ value / (1 + e.sum(-1, keepdims=True))
  np.testing.assert_allclose(y, out @ p["proj"]["kernel"], rtol=1e-4, atol=1e-5)


@pytest.fixture(
  scope="module",
  params=["lightning_dit", pytest.param("sit", marks=pytest.mark.slow)],
)
def trained(request):
  network = make(request.param)
  return network, weights(network, *inputs())


def test_null_memory_is_the_network_without_cross(trained):
  network, params = trained
  x, t, snippet, neighbours = inputs()
  null = jax.tree.map(jnp.zeros_like, neighbours)
  cross = jax.jit(lambda n: network.apply({"params": params}, x, t, snippet, n))
  plain = network.clone(conditioning="adaln").apply(
    {"params": params}, x, t, snippet
  )
  np.testing.assert_allclose(cross(null), plain, rtol=1e-4, atol=1e-5)
  assert np.abs(np.asarray(cross(neighbours) - plain)).max() > 1e-2

  # One absent neighbour is as if it had not been found, and order is nothing.
  one = conditioning.Neighbours(
    neighbours.snippets.at[:, 1].set(0), neighbours.scores
  )
  swapped = jax.tree.map(lambda a: a[:, jnp.array([2, 0])], neighbours)
  fewer = jax.jit(
    lambda n: network.apply({"params": params}, x, t, snippet, n)
  )(swapped)
  np.testing.assert_allclose(cross(one), fewer, rtol=1e-4, atol=1e-5)


def test_gradients_reach_all_of_the_cross_attention(trained):
  network, params = trained
  x, t, snippet, neighbours = inputs()

  def loss(params, neighbours):
    out = network.apply({"params": params}, x, t, snippet, neighbours)
    return jnp.mean(out**2)

  grads, seen = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, neighbours)
  for name in ("cross", "memory_embed", "memory_norm"):
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads[name]):
      assert np.abs(np.asarray(leaf)).max() > 0, (name, path)
  assert np.abs(np.asarray(seen.scores)).min() > 0


def test_dropout_of_neighbours_is_not_that_of_the_snippet(trained):
  network, params = trained
  x, t, _, neighbours = inputs()
  alone = network.clone(conditioning="cross")
  apply = jax.jit(
    lambda key: alone.apply(
      {"params": params}, x, t, None, neighbours, dropout_key=key
    )
  )
  a, b = apply(jax.random.key(1)), apply(jax.random.key(2))
  assert np.abs(np.asarray(a - b)).max() > 1e-3
  np.testing.assert_array_equal(a, apply(jax.random.key(1)))


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_scanned_and_unrolled_blocks_agree(every):
  network = make(cross_every=every, depth=2)
  params = weights(network, *inputs())
  count = jax.tree.leaves(params["cross"])[0].shape[0]
  assert count == network.depth // every

  def value_and_grad(scan, remat):
    net = network.clone(scan_layers=scan, remat=remat)

    def loss(params):
      out, z = net.apply({"params": params}, *inputs(), project=True)
      return jnp.mean(out**2) + jnp.mean(z**2)

    return jax.jit(jax.value_and_grad(loss))(params)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5),
    value_and_grad(True, "dots"),
    value_and_grad(False, "none"),
  )


@pytest.mark.slow
def test_a_network_that_gains_cross_keeps_its_other_parameters():
  plain = jax.jit(make(kind="adaln").init)(jax.random.key(0), *inputs()[:3])
  grown = jax.jit(make().init)(jax.random.key(0), *inputs())
  fresh = grown["params"]
  gained = fresh.keys() - plain["params"].keys()
  assert gained == {"cross", "memory_embed", "memory_norm"}
  for name, part in plain["params"].items():
    jax.tree.map(np.testing.assert_array_equal, part, fresh[name])
  assert not fresh["cross"]["proj"]["kernel"].any()
  assert blocks.init_cross(make().block(), 4, 16)


@pytest.mark.parametrize(
  ("kind", "args", "message"),
  [
    ("cross", (None, None), "'cross': needs a neighbour"),
    ("adaln", (0, 1), "'adaln': takes no neighbour"),
    ("cross", (0, 1), "'cross': takes no snippet"),
    ("adaln+cross", (0, None), r"'adaln\+cross': needs a neighbour"),
  ],
)
def test_conditioning_that_does_not_fit_is_refused(kind, args, message):
  x, t, snippet, neighbours = inputs()
  snippet, neighbours = (
    None if given is None else value
    for given, value in zip(args, (snippet, neighbours), strict=True)
  )
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      make(kind=kind).init, jax.random.key(0), x, t, snippet, neighbours
    )
