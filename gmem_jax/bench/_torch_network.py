"""LightningDiT and its loss in PyTorch, for comparison; ours, like the rest.

The same network as `models.dit.LightningDiT` on the same parameters, written as
one would write it in PyTorch: fused attention, linear layers on tokens, and
under `torch.compile` one graph. Importing this module needs torch.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gmem_jax.diffusion import losses
from gmem_jax.models import attention, transformer

# No part of the package depends on it, so checkers need not know it.
torch: Any = importlib.import_module("torch")
F: Any = torch.nn.functional

Params = dict[str, Any]
_TIME_FREQUENCIES = 128


def convert(params: Mapping[str, Any], device: str) -> Params:
  """Our parameters as a flat dict of tensors, each block's its own.

  Returns:
    Names as ours, joined by dots, with the number of the block; kernels
    [out, in], as torch's linear layers have them.
  """

  def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
      if isinstance(value, Mapping):
        yield from walk(value, f"{prefix}{name}.")
      else:
        yield prefix + name, np.asarray(value)

  flat = {}
  for name, value in walk(params, ""):
    if not name.startswith("blocks."):
      flat[name] = value
      continue
    for i, layer in enumerate(value):
      flat[name.replace("blocks.", f"blocks.{i}.", 1)] = layer
  found = {}
  for name, value in flat.items():
    # Flax keeps [in, out].
    value = value.T if name.endswith("kernel") else value
    tensor = torch.tensor(np.ascontiguousarray(value), device=device)
    found[name] = tensor.requires_grad_(name != "pos_embed")
  return found


class TorchNetwork:
  """A LightningDiT: velocity and projected tokens.

  Attributes:
    ours: The network that it copies.
  """

  def __init__(self, ours: transformer.FlowTransformer, grid: int, device: str):
    """Makes the tables.

    Raises:
      ValueError: If the network is no LightningDiT with RMSNorm, SwiGLU and
        rotation, and with memory.
    """
    s = ours.style
    known = s.rope and s.rms_norm and s.swiglu and s.shift and not s.qk_norm
    if not known or ours.conditioning == "none" or ours.learn_sigma:
      raise ValueError(
        "the torch peer is LightningDiT's network with memory; of other"
        " settings of config.model it knows none: --peer none"
      )
    self.ours, self.half = ours, str(ours.dtype) == "bfloat16"
    tables = attention.rope_tables(grid, ours.width // ours.heads)
    self.cos, self.sin = (
      torch.tensor(table, device=device)[None, None] for table in tables
    )
    i = np.arange(_TIME_FREQUENCIES, dtype=np.float32)
    w = np.exp(-np.log(10000.0) * i / _TIME_FREQUENCIES)
    self.frequencies = torch.tensor(w.astype(np.float32), device=device)
    self.device = device

  def __call__(
    self, p: Params, x: Any, t: Any, snippet: Any, project: bool
  ) -> tuple[Any, Any]:
    """Predicts.

    Args:
      p: What `convert` made, on the device of the network.
      x: Noisy latents [b h w c].
      t: Times [b].
      snippet: [b s].
      project: Whether to project tokens.

    Returns:
      (velocity [b h w c], projected tokens [b n z] or None), float32.
    """
    with torch.autocast(
      self.device, torch.bfloat16, enabled=self.half, cache_enabled=False
    ):
      return self._apply(p, x, t, snippet, project)

  def _apply(self, p, x, t, snippet, project):
    n, q = self.ours, self.ours.patch
    b, h, w, c = x.shape
    x = x.reshape(b, h // q, q, w // q, q, c).transpose(2, 3)
    tokens = _linear(p, "patch_embed.linear", x.reshape(b, -1, q * q * c))
    # The published network adds float32 positions, and so has a float32 stream.
    if self.half and str(n.residual_dtype) == "float32":
      tokens = tokens.float()
    tokens = tokens + p["pos_embed"].to(tokens.dtype)
    cond = F.silu(self._condition(p, t, snippet))
    projected = None
    for i in range(n.depth):
      tokens = self._block(p, f"blocks.{i}.", tokens, cond)
      if project and i + 1 == n.projector_depth:
        y = F.silu(_linear(p, "projector.fc1", tokens))
        y = F.silu(_linear(p, "projector.fc2", y))
        projected = _linear(p, "projector.fc3", y).float()
    mod = _linear(p, "final.modulation", cond)[:, None]
    shift, scale = mod.chunk(2, -1)
    y = _norm(p, "final.norm", tokens) * (1 + scale) + shift
    y = _linear(p, "final.linear", y)
    y = y.reshape(b, h // q, w // q, q, q, c).transpose(2, 3)
    return y.reshape(b, h, w, c).float(), projected

  def _condition(self, p, t, snippet):
    # In float32, as in ours: in bfloat16 near times would look alike.
    with torch.autocast(self.device, enabled=False):
      angles = t[:, None] * self.frequencies
      y = torch.cat([angles.cos(), angles.sin()], -1)
      y = F.silu(_linear(p, "time_embed.fc1", y))
      y = _linear(p, "time_embed.fc2", y)
      return y + _linear(p, "snippet_embed", snippet)

  def _block(self, p, at, x, cond):
    mod = _linear(p, f"{at}modulation", cond)[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = mod.chunk(6, -1)
    y = _norm(p, f"{at}norm1", x) * (1 + scale1) + shift1
    x = x + gate1 * self._attention(p, f"{at}attn.", y)
    y = _norm(p, f"{at}norm2", x) * (1 + scale2) + shift2
    a, g = _linear(p, f"{at}mlp.w12", y).chunk(2, -1)
    return x + gate2 * _linear(p, f"{at}mlp.w3", F.silu(a) * g)

  def _attention(self, p, at, x):
    b, n, d = x.shape
    qkv = _linear(p, f"{at}qkv", x)
    q, k, v = qkv.reshape(b, n, 3, self.ours.heads, -1).permute(2, 0, 3, 1, 4)
    # Rotated in float32; fused attention wants all three in one dtype.
    q, k = (self._rotate(y).to(v.dtype) for y in (q, k))
    y = F.scaled_dot_product_attention(q, k, v)
    return _linear(p, f"{at}proj", y.transpose(1, 2).reshape(b, n, d))

  def _rotate(self, x):
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = (a * self.cos - b * self.sin, b * self.cos + a * self.sin)
    return torch.stack(turned, -1).flatten(-2)


def _linear(p: Params, name: str, x: Any) -> Any:
  return F.linear(x, p[f"{name}.kernel"], p[f"{name}.bias"])


def _norm(p: Params, name: str, x: Any) -> Any:
  # Norms are float32 in ours, too.
  x = x.float()
  y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
  return y * p[f"{name}.scale"]


def flow_loss(
  config: losses.LossConfig, velocity: Any, projected: Any, draws: Any
) -> Any:
  """`losses.flow_loss` on the linear path, for the velocity."""
  target = draws.x1 - draws.x0
  loss = (velocity - target).square().mean()
  if config.cosine:
    loss = loss + (1 - F.cosine_similarity(velocity, target, dim=-1)).mean()
  if config.projection_weight:
    cosine = F.cosine_similarity(projected, draws.tokens, dim=-1, eps=1e-12)
    loss = loss - config.projection_weight * cosine.mean()
  return loss
