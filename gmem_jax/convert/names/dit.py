r"""Names of the transformers, SiT and LightningDiT, onto the same Flax tree.

They differ in the projector's name alone (`projectors.0` and `projector.0`); a
network has those of the other names that its flags call for. The tables of the
rotation are computed, not learned: "buffer". The position table is in the
checkpoint, and an average of weights may have moved it, so it is a parameter.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import rngs
from gmem_jax.convert import rules
from gmem_jax.convert.rules import Rule
from gmem_jax.models import lightning_dit, sit, transformer

Shapes = Mapping[str, tuple[int, ...]]


def _linear(torch: str, flax: str) -> list[Rule]:
  """Weight and bias of a linear layer."""
  return [
    Rule(rf"{torch}\.weight", f"{flax}/kernel", "linear"),
    Rule(rf"{torch}\.bias", f"{flax}/bias"),
  ]


def _norm(torch: str, flax: str) -> list[Rule]:
  return [
    Rule(rf"{torch}\.weight", f"{flax}/scale"),
    Rule(rf"{torch}\.bias", f"{flax}/bias"),
  ]


def _stacked(layer: list[Rule]) -> list[Rule]:
  """The rules of a layer, for that layer of every block."""
  return [
    Rule(
      rf"blocks\.(?P<i>\d+)\.{rule.torch}",
      f"blocks/{rule.flax}",
      rule.transform,
      stack="i",
    )
    for rule in layer
  ]


_COMMON = (
  Rule("pos_embed", "pos_embed"),
  Rule(r"x_embedder\.proj\.weight", "patch_embed/linear/kernel", "conv_linear"),
  Rule(r"x_embedder\.proj\.bias", "patch_embed/linear/bias"),
  *_linear(r"t_embedder\.mlp\.0", "time_embed/fc1"),
  *_linear(r"t_embedder\.mlp\.2", "time_embed/fc2"),
  *_linear(r"condition_projection\.linear", "snippet_embed"),
  *_stacked(_linear(r"adaLN_modulation\.1", "modulation")),
  *_stacked([Rule(r"norm(?P<k>[12])\.weight", "norm{k}/scale")]),
  *_stacked(_linear(r"attn\.(?P<name>qkv|proj)", "attn/{name}")),
  *_stacked(_norm(r"attn\.(?P<name>q_norm|k_norm)", "attn/{name}")),
  *_stacked(_linear(r"mlp\.(?P<name>w12|w3|fc1|fc2)", "mlp/{name}")),
  Rule(r"final_layer\.norm_final\.weight", "final/norm/scale"),
  *_linear(r"final_layer\.adaLN_modulation\.1", "final/modulation"),
  *_linear(r"final_layer\.linear", "final/linear"),
)


def _projector(torch: str) -> list[Rule]:
  return [
    rule
    for index, name in ((0, "fc1"), (2, "fc2"), (4, "fc3"))
    for rule in _linear(rf"{torch}\.{index}", f"projector/{name}")
  ]


SIT: tuple[Rule, ...] = (*_COMMON, *_projector(r"projectors\.0"))
LIGHTNING_DIT: tuple[Rule, ...] = (
  *_COMMON,
  *_projector(r"projector\.0"),
  Rule(r"feat_rope\.freqs_cos", "", "buffer"),
  Rule(r"feat_rope\.freqs_sin", "", "buffer"),
)


def table(network: transformer.FlowTransformer) -> tuple[Rule, ...]:
  """The table of a network's family."""
  return SIT if isinstance(network, sit.SiT) else LIGHTNING_DIT


def network(shapes: Shapes, **known: Any) -> transformer.FlowTransformer:
  """The network that a state dict is of, read off its names and shapes.

  Args:
    shapes: PyTorch names to shapes.
    **known: attributes that take precedence. No file tells `projector_depth`
      (by default the published one), nor the number of `heads` if queries are
      neither rotated nor normalised (by default that of the published size of
      the same width).

  Returns:
    The network; `check` tells whether the state dict is complete.

  Raises:
    NamesError: a name that tells a width is missing or has another rank.
    ValueError: the number of heads is needed, or a width is impossible.
  """
  width, channels, _, patch = _shape(shapes, "x_embedder.proj.weight", 4)
  rope = "feat_rope.freqs_cos" in shapes
  is_sit = any(name.startswith("projectors.") for name in shapes)
  family = sit.SiT if is_sit else lightning_dit.LightningDiT
  projector = "projectors.0" if is_sit else "projector.0"
  layers = (re.match(r"blocks\.(\d+)\.", name) for name in shapes)
  depth = 1 + max((int(m[1]) for m in layers if m), default=0)
  out, _ = _shape(shapes, "final_layer.linear.weight", 2)
  fields: dict[str, Any] = {
    "channels": channels,
    "patch": patch,
    "width": width,
    "depth": depth,
    "snippet_dim": _shape(shapes, "condition_projection.linear.weight", 2)[1],
    "projector_depth": min(family.projector_depth, depth),
    "projector_width": _shape(shapes, f"{projector}.0.weight", 2)[0],
    "token_dim": _shape(shapes, f"{projector}.4.weight", 2)[0],
    "learn_sigma": out == 2 * channels * patch**2,
  }
  if not is_sit:
    modulation, _ = _shape(shapes, "blocks.0.adaLN_modulation.1.weight", 2)
    fields |= {
      "swiglu": "blocks.0.mlp.w12.weight" in shapes,
      "rope": rope,
      "rms_norm": "blocks.0.norm1.weight" in shapes,
      "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
      "shift": modulation != 4 * width,
    }
  if "heads" not in known:
    fields["heads"] = _heads(shapes, width)
  return family(**{**fields, **known})


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
  shape = shapes.get(name)
  if shape is None:
    raise rules.NamesError("transformer", [f"{name}: missing"])
  if len(shape) != rank or 0 in shape:
    problem = f"{name}: shape {tuple(shape)}, expected {rank} axes, none empty"
    raise rules.NamesError("transformer", [problem])
  return tuple(shape)


def _heads(shapes: Shapes, width: int) -> int:
  """The number of heads, if a shape or a published size tells it."""
  for name in ("feat_rope.freqs_cos", "blocks.0.attn.q_norm.weight"):
    if name in shapes:
      return width // shapes[name][-1]
  sizes = (*sit.SIZES.values(), *lightning_dit.SIZES.values())
  published = {size["width"]: size["heads"] for size in sizes}
  if width not in published:
    raise ValueError(
      f"the number of heads is in no tensor, and width {width} is not a "
      f"published one ({', '.join(map(str, sorted(published)))}): give "
      "model.heads"
    )
  return published[width]


def state_dict_shapes(
  network: transformer.FlowTransformer, grid: int
) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the PyTorch file that a network comes from.

  Args:
    network: the network, with conditioning "adaln".
    grid: tokens along each side of the latent.

  Returns:
    PyTorch names to shapes, the buffers included.
  """
  patch, channels = network.patch, network.channels
  params = jax.eval_shape(
    network.init,
    rngs.key(0, "init"),
    jnp.zeros((1, grid * patch, grid * patch, channels)),
    jnp.zeros((1,)),
    jnp.zeros((1, network.snippet_dim)),
  )["params"]
  # The one transform that forgets the shape it came from.
  del params["patch_embed"]["linear"]["kernel"]
  shapes = {"x_embedder.proj.weight": (network.width, channels, patch, patch)}
  # Broadcast zeros have the shapes of the parameters, but take no memory.
  zero = np.zeros((), np.float32)
  hollow = jax.tree.map(lambda a: np.broadcast_to(zero, a.shape), params)
  tensors = rules.to_torch(table(network), hollow)
  shapes |= {name: tensor.shape for name, tensor in tensors.items()}
  if network.style.rope:
    rotation = (grid * grid, network.width // network.heads)
    shapes |= {f"feat_rope.freqs_{f}": rotation for f in ("cos", "sin")}
  return shapes


def check(shapes: Shapes, network: transformer.FlowTransformer) -> None:
  """Checks that a state dict is that of a network, all of it and no more.

  Args:
    shapes: PyTorch names to shapes.
    network: the network.

  Raises:
    NamesError: listing every name that is missing, unexpected or misshapen.
  """
  tokens = _shape(shapes, "pos_embed", 3)[1]
  expected = state_dict_shapes(network, math.isqrt(tokens))
  problems = [f"{name}: missing" for name in expected if name not in shapes]
  for name, shape in shapes.items():
    if name not in expected:
      problems.append(f"{name}: unexpected")
    elif tuple(shape) != expected[name]:
      problems.append(f"{name}: shape {tuple(shape)}, not {expected[name]}")
  if problems:
    raise rules.NamesError("transformer", problems)
