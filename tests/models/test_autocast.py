"""bfloat16 as published: beside PyTorch's autocast, which decides by itself.

Both are compared with float32, the same network on the same parameters, as deep
as the published XL. What is measured is the root mean square of the error over
that of the result.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.models import dit

torch = pytest.importorskip("torch", reason="needs torch (extra 'oracle')")
pytestmark = pytest.mark.torch

SIZE = {
  "channels": 4, "patch": 1, "width": 64, "depth": 28, "heads": 4,
  "snippet_dim": 32, "snippet_dropout": 0.0, "projector_depth": 4,
  "projector_width": 8, "token_dim": 8,
}  # fmt: skip


def network(dtype="float32", residual_dtype="float32"):
  # Scanned, as 28 blocks take long to compile.
  return dit.LightningDiT(
    **SIZE, dtype=dtype, residual_dtype=residual_dtype, scan_layers=True
  )


@pytest.fixture(scope="module")
def inputs():
  random = np.random.default_rng(0)
  x = random.standard_normal((2, 4, 4, 4)).astype(np.float32)
  c = random.standard_normal((2, 32)).astype(np.float32)
  t = np.array([0.3, 0.8], np.float32)
  return x, t, c / np.linalg.norm(c, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def params(inputs):
  return jax.jit(network().init)(jax.random.key(0), *inputs)["params"]


def ours(network, params, inputs):
  """The velocity, and the gradient of its mean square."""

  def loss(params):
    velocity = network.apply({"params": params}, *map(jnp.asarray, inputs))
    return jnp.mean(velocity**2), velocity

  (_, velocity), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    params
  )
  return np.asarray(velocity), flat(gradient)


def flat(gradient):
  """The gradients of all kernels of the blocks, in one vector."""
  blocks = gradient["blocks"]
  return np.concatenate(
    [
      np.asarray(blocks[part][layer]["kernel"]).ravel()
      for part, layer in (("attn", "qkv"), ("attn", "proj"), ("mlp", "w3"))
    ]
  )


def theirs(params, inputs):
  """The same under torch's autocast."""
  from gmem_jax.bench import _torch_network

  peer = _torch_network.TorchNetwork(network("bfloat16"), 4, "cpu")
  tensors = _torch_network.convert(params, "cpu")
  x, t, c = (torch.tensor(a) for a in inputs)
  velocity, _ = peer(tensors, x, t, c, project=False)
  velocity.square().mean().backward()

  def stacked(name):
    layers = [tensors[f"blocks.{i}.{name}"] for i in range(SIZE["depth"])]
    return {"kernel": np.stack([layer.grad.numpy().T for layer in layers])}

  blocks = {
    "attn": {
      "qkv": stacked("attn.qkv.kernel"),
      "proj": stacked("attn.proj.kernel"),
    },
    "mlp": {"w3": stacked("mlp.w3.kernel")},
  }
  return velocity.detach().numpy(), flat({"blocks": blocks})


def error(actual, exact):
  return float(np.sqrt(np.mean((actual - exact) ** 2) / np.mean(exact**2)))


def test_bfloat16_errs_no_more_than_autocast(params, inputs):
  exact = ours(network(), params, inputs)
  half = ours(network("bfloat16"), params, inputs)
  autocast = theirs(params, inputs)
  narrow = ours(network("bfloat16", "bfloat16"), params, inputs)
  for i in (0, 1):
    here, there, worse = (
      error(each[i], exact[i]) for each in (half, autocast, narrow)
    )
    # Velocity: 3.4e-3, 3.8e-3, 1.01e-2; gradient: 4.8e-3, 5.6e-3, 7.2e-3.
    assert 1e-4 < here < 1.1 * there
    assert worse > 1.3 * here
