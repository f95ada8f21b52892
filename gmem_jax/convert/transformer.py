"""Reads the configuration of a transformer off its state dict."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gmem_jax.convert import manifest, rules
from gmem_jax.convert.detect import Contents
from gmem_jax.convert.manifest import Identity, Shapes
from gmem_jax.convert.names import dit
from gmem_jax.models import dit as dit_lib, transformer as networks

_LABELS = {"sit": "SiT", "lightning_dit": "LightningDiT"}
_SIZES = {
  "sit": dit_lib.SIT_SIZES,
  "lightning_dit": dit_lib.LIGHTNING_DIT_SIZES,
}
# Fields that say how to run a network, not what it is.
_RUNTIME = (
  "parent", "name", "dtype", "residual_dtype", "float8", "scan_layers", "remat",
  "attention", "cross_every",
)  # fmt: skip
# The trainer's flags: ours, and whether it is the opposite.
_FLAGS = {
  "use_swiglu": ("swiglu", False),
  "use_rope": ("rope", False),
  "use_rmsnorm": ("rms_norm", False),
  "use_qknorm": ("qk_norm", False),
  "wo_shift": ("shift", True),
}


def identify(contents: Contents, settings: Mapping[str, int]) -> Identity:
  """Finds the network of a transformer's file and checks all its names.

  `settings` has "heads" and "projector_depth", where the user gives them.

  Raises:
    NamesError: Names that are missing, unexpected or misshapen.
    ValueError: The number of heads is needed, or contradicts the file.
  """
  label, sizes = _LABELS[contents.kind], _SIZES[contents.kind]
  shapes = manifest.shapes_of(contents.tensors)
  network = read_network(contents.kind, shapes, **settings)
  grid = math.isqrt(shapes["pos_embed"][1])
  parameters = state_dict_shapes(network, grid)
  rotation = [n for n in parameters if n.startswith("feat_rope.")]
  buffers = {name: parameters.pop(name) for name in rotation}
  problems = manifest.compare(contents.tensors, parameters, buffers)
  problems = [problem + _origin(problem, contents.kind) for problem in problems]
  problems += _conflicts(contents.config, network)
  own = {k: getattr(network, k) for k in ("width", "depth", "heads", "patch")}
  size = next((name for name, s in sizes.items() if s == own), None)
  words = ", ".join(f"{key} {value}" for key, value in own.items())
  title = f"{label}-{size}" if size else f"{label} ({words})"
  rules.refuse(f"not a complete {title}", problems)

  fields = {
    field.name: getattr(network, field.name)
    for field in dataclasses.fields(network)
    if field.name not in _RUNTIME
  }
  model = {"family": contents.kind, **fields, "grid": grid}
  notes = tuple(_notes(network, size, settings))
  return Identity(title, dit.table(network), model, notes)


def read_network(
  kind: str, shapes: Shapes, **settings: Any
) -> networks.FlowTransformer:
  """The network that a state dict is of, read off its names and shapes.

  Args:
    kind: "sit" or "lightning_dit".
    shapes: Of the file; `state_dict_shapes` tells whether it is complete.
    **settings: Attributes that take precedence. No file tells
      `projector_depth` (by default the published one), nor the number of
      `heads` if queries are neither rotated nor normalised (by default that of
      the published size of the same width).

  Raises:
    NamesError: A name that tells a width is missing or has another rank.
    ValueError: The number of heads is needed, or contradicts the file.
  """
  is_sit, projectors = kind == "sit", dit.PROJECTORS[kind]
  family = dit_lib.FAMILIES[kind]
  count = manifest.count(shapes, projectors, limit=len(shapes))
  outputs = [f"{projectors}.{i}.4.weight" for i in range(count)]
  modulation = "blocks.0.adaLN_modulation.1.weight"
  kernel, table, final, condition, first, *rest = manifest.deciding(
    _LABELS[kind],
    shapes,
    {
      "x_embedder.proj.weight": 4,
      "pos_embed": 3,
      "final_layer.linear.weight": 2,
      "condition_projection.linear.weight": 2,
      f"{projectors}.0.0.weight": 2,
      **dict.fromkeys(outputs, 2),
      **({} if is_sit else {modulation: 2}),
    },
  )
  token_dims = tuple(shape[0] for shape in rest[:count])
  width, channels, _, patch = kernel
  # Two witnesses: by a wrong width every other name would be accused.
  if width != table[-1]:
    raise rules.NamesError(
      f"not a complete {_LABELS[kind]}",
      [f"x_embedder.proj.weight: width {width}, pos_embed has {table[-1]}"],
    )
  depth = manifest.count(shapes, "blocks", limit=len(shapes))
  fields: dict[str, Any] = {
    "channels": channels,
    "patch": patch,
    "width": width,
    "depth": depth,
    "heads": _heads(shapes, width, kind, settings),
    "snippet_dim": condition[1],
    "projector_depth": min(family.projector_depth, depth),
    "projector_width": first[0],
    "token_dim": token_dims if count > 1 else token_dims[0],
    "learn_sigma": final[0] == 2 * channels * patch**2,
  }
  if not is_sit:
    # Any block speaks for all: `compare` finds those that lack what it has.
    parts = {name.split(".", 2)[-1] for name in shapes}
    fields |= {
      "swiglu": "mlp.w12.weight" in parts,
      "rope": any(name.startswith("feat_rope.") for name in shapes),
      "rms_norm": "norm1.weight" in parts,
      "qk_norm": bool(parts & {"attn.q_norm.weight", "attn.k_norm.weight"}),
      "shift": rest[count][0] != 4 * width,
    }
  return family(**{**fields, **settings})


def _heads(
  shapes: Shapes, width: int, kind: str, settings: Mapping[str, Any]
) -> int:
  """The number of heads: from a shape, from the user, or as published."""
  given = settings.get("heads")
  cos, sin = (shapes.get(f"feat_rope.freqs_{f}", ()) for f in ("cos", "sin"))
  q, k = (shapes.get(f"blocks.0.attn.{n}_norm.weight", ()) for n in "qk")
  # Norms that differ tell nothing; `compare` says which of them is wrong.
  for shape in (cos, sin, q if q == k else ()):
    if shape and shape[-1] and width % shape[-1] == 0:
      heads = width // shape[-1]
      if given not in (None, heads):
        raise ValueError(f"--model num_heads={given}, but the file has {heads}")
      return heads
  published = {s["width"]: s["heads"] for s in _SIZES[kind].values()}
  heads = given or published.get(width)
  if heads is None:
    raise ValueError(
      "the number of attention heads is in no tensor of this file, and width"
      f" {width} is not a published one ({', '.join(map(str, published))}):"
      " give it with --model num_heads=N"
    )
  return heads


def state_dict_shapes(
  network: networks.FlowTransformer, grid: int
) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the PyTorch file of a network, buffers included.

  Args:
    network: With conditioning "adaln".
    grid: Tokens along each side of the latent.
  """
  patch, channels = network.patch, network.channels
  side = grid * patch
  inputs = [(1, side, side, channels), (1,), (1, network.snippet_dim)]
  # The one transform that forgets the shape it came from.
  kernel = {"x_embedder.proj.weight": (network.width, channels, patch, patch)}
  shapes = manifest.expected(network, inputs, dit.table(network), kernel)
  if network.style.rope:
    rotation = (grid * grid, network.width // network.heads)
    shapes |= {f"feat_rope.freqs_{f}": rotation for f in ("cos", "sin")}
  return shapes


def _origin(problem: str, kind: str) -> str:
  """Says that an unexpected name is one of the other family."""
  name, _, fault = problem.partition(": ")
  other = "lightning_dit" if kind == "sit" else "sit"
  if fault != "unexpected" or rules.plan(dit.TABLES[other], [name])[2]:
    return ""
  return f", a name of {_LABELS[other]}'s"


def _conflicts(
  trainer: Mapping[str, Any], network: networks.FlowTransformer
) -> list[str]:
  """Flags of the trainer's configuration that the tensors contradict."""
  model = trainer.get("model")
  if not isinstance(model, Mapping):
    return []
  problems = []
  for flag, (field, opposite) in _FLAGS.items():
    value = model.get(flag)
    if isinstance(value, bool) and value ^ opposite != getattr(network, field):
      problems.append(f"config.model.{flag} is {value}, the tensors differ")
  return problems


def _notes(
  network: networks.FlowTransformer,
  size: str | None,
  settings: Mapping[str, int],
) -> list[str]:
  notes = []
  unusual = [
    f"{field.name}={getattr(network, field.name)}"
    for field in dataclasses.fields(network)
    if isinstance(field.default, bool)
    and field.name not in _RUNTIME
    and getattr(network, field.name) != field.default
  ]
  if size is None:
    notes.append("not one of the published sizes")
  if unusual:
    notes.append(f"differs from the published flags: {', '.join(unusual)}")
  if size is None and "projector_depth" not in settings:
    notes.append(
      "the block that the projector follows is in no file; taken as"
      f" {network.projector_depth} (--model encoder_depth=N)"
    )
  return notes
