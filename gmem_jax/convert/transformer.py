"""Reads the configuration of a transformer off its state dict."""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gmem_jax.convert import manifest, rules
from gmem_jax.convert.detect import Found
from gmem_jax.convert.manifest import Identity, Shapes
from gmem_jax.convert.names import dit
from gmem_jax.models import lightning_dit, sit, transformer as networks

_FAMILIES = {
  "sit": ("SiT", sit.SiT, sit.SIZES),
  "lightning_dit": (
    "LightningDiT",
    lightning_dit.LightningDiT,
    lightning_dit.SIZES,
  ),
}
# Fields that say how to run a network, not what it is.
_RUNTIME = (
  "parent", "name", "dtype", "float8", "scan_layers", "remat", "attention",
  "cross_every",
)  # fmt: skip
# The trainer's flags: ours, and whether it is the opposite.
_FLAGS = {
  "use_swiglu": ("swiglu", False),
  "use_rope": ("rope", False),
  "use_rmsnorm": ("rms_norm", False),
  "use_qknorm": ("qk_norm", False),
  "wo_shift": ("shift", True),
}


def identify(found: Found, settings: Mapping[str, int]) -> Identity:
  """Finds the network of a transformer's file and checks all its names.

  Args:
    found: what the file holds.
    settings: `heads` and `projector_depth`, where the user gives them.

  Returns:
    What it is.

  Raises:
    NamesError: names that are missing, unexpected or misshapen.
    ValueError: the number of heads is needed, or contradicts the file.
  """
  label, family, sizes = _FAMILIES[found.kind]
  shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
  complete = _completed(shapes, found.kind == "sit")
  heads = _heads(complete, sizes, settings)
  network = dit.network(complete, **{**settings, "heads": heads})

  tables = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")
  tokens = manifest.vote(shapes, [(name, -2) for name in tables]) or 256
  wanted = dict(dit.state_dict_shapes(network, math.isqrt(tokens)))
  rotation = [n for n in wanted if n.startswith("feat_rope.")]
  buffers = {name: wanted.pop(name) for name in rotation}
  problems = manifest.compare(found.tensors, wanted, buffers)
  problems += _conflicts(found.config, network)
  own = {k: getattr(network, k) for k in ("width", "depth", "heads", "patch")}
  size = next((name for name, s in sizes.items() if s == own), None)
  title = f"{label}-{size}" if size else f"{label} ({_words(own)})"
  if problems:
    raise rules.NamesError(f"not a complete {title}", problems)

  fields = {
    field.name: getattr(network, field.name)
    for field in dataclasses.fields(family)
    if field.name not in _RUNTIME
  }
  model = {"family": found.kind, **fields, "grid": math.isqrt(tokens)}
  notes = tuple(_notes(network, size, settings))
  return Identity(title, dit.table(network), model, notes)


def _words(fields: Mapping[str, Any]) -> str:
  return ", ".join(f"{key} {value}" for key, value in fields.items())


def _completed(shapes: Shapes, is_sit: bool) -> Shapes:
  """Replaces what tells the configuration by what most names agree on.

  With it the configuration can be read off a damaged file too, and everything
  that is wrong with the file be listed.
  """
  vote = manifest.vote
  projector = "projectors.0" if is_sit else "projector.0"
  width_places = (
    ("pos_embed", -1),
    ("x_embedder.proj.bias", 0),
    ("t_embedder.mlp.2.bias", 0),
    ("condition_projection.linear.bias", 0),
    ("final_layer.linear.weight", 1),
    ("blocks.0.attn.proj.bias", 0),
  )
  hidden_places = (
    (f"{projector}.0.bias", 0),
    (f"{projector}.2.bias", 0),
    (f"{projector}.0.weight", 0),
  )
  blocks = [
    f"blocks.{k}" for k in range(manifest.depth(shapes, limit=len(shapes)))
  ]
  modulations = [(f"{block}.adaLN_modulation.1.bias", 0) for block in blocks]
  width = vote(shapes, width_places) or 0
  hidden = vote(shapes, hidden_places) or 2048
  token = next(iter(_outputs(shapes, f"{projector}.4")), 768)
  modulation = vote(shapes, modulations) or 6 * width
  snippet = vote(shapes, [("condition_projection.linear.weight", 1)]) or 768
  outputs = _outputs(shapes, "final_layer.linear") or [16 if is_sit else 32]
  kernel = shapes.get("x_embedder.proj.weight", ())
  if len(kernel) != 4 or 0 in kernel:
    patch = 2 if is_sit else 1
    kernel = (width, outputs[0] // patch**2, patch, patch)
  pixels = math.prod(kernel[1:])
  out = next((n for n in outputs if n in (pixels, 2 * pixels)), outputs[0])
  complete = {
    **shapes,
    "x_embedder.proj.weight": (width, *kernel[1:]),
    "final_layer.linear.weight": (out, width),
    "condition_projection.linear.weight": (width, snippet),
    f"{projector}.0.weight": (hidden, width),
    f"{projector}.4.weight": (token, hidden),
    "blocks.0.adaLN_modulation.1.weight": (modulation, width),
  }
  # One table of the rotation, and one block, speak for the others.
  for rank, names in (
    (2, ["feat_rope.freqs_cos", "feat_rope.freqs_sin"]),
    (1, [f"{block}.attn.{n}_norm.weight" for block in blocks for n in "qk"]),
    (2, [f"{block}.mlp.w12.weight" for block in blocks]),
    (1, [f"{block}.norm1.weight" for block in blocks]),
  ):
    present = [shapes[name] for name in names if name in shapes]
    fitting = [shape for shape in present if len(shape) == rank] or present
    if fitting:
      complete[names[0]] = collections.Counter(fitting).most_common(1)[0][0]
  return complete


def _outputs(shapes: Shapes, layer: str) -> list[int]:
  """The number of outputs of a layer by its weight and by its bias."""
  shapes_of_both = (
    (shapes.get(f"{layer}.weight", ()), 2),
    (shapes.get(f"{layer}.bias", ()), 1),
  )
  return [s[0] for s, rank in shapes_of_both if len(s) == rank and s[0]]


def _heads(
  shapes: Shapes,
  sizes: Mapping[str, Mapping[str, int]],
  settings: Mapping[str, int],
) -> int:
  """The number of heads: from a shape, from the user, or as published."""
  width = shapes["x_embedder.proj.weight"][0]
  head_width = manifest.vote(
    shapes,
    (("feat_rope.freqs_cos", 1), ("blocks.0.attn.q_norm.weight", 0)),
  )
  given = settings.get("heads")
  if head_width and width % head_width == 0:
    told = width // head_width
    if given not in (None, told):
      raise ValueError(f"--model num_heads={given}, but the file has {told}")
    return told
  published = {size["width"]: size["heads"] for size in sizes.values()}
  heads = given or published.get(width)
  if heads is None:
    raise ValueError(
      "the number of attention heads is in no tensor of this file, and width "
      f"{width} is not a published one ({', '.join(map(str, published))}): "
      "give it with --model num_heads=N"
    )
  return heads


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
      "the block that the projector follows is in no file; taken as "
      f"{network.projector_depth} (--model encoder_depth=N)"
    )
  return notes
