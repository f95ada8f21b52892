"""Names and shapes that a file must have, from the network it is of.

The lists of the published files (third_party/manifests) are what these
functions give for the published networks; a test holds them against each other.
So no list has to be installed, and a network of any other size is checked as
strictly as a published one.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import rngs
from gmem_jax.convert import rules, transforms
from gmem_jax.convert.rules import Rule

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Identity:
  """A file whose names and shapes are right.

  Attributes:
    title: what it is, for the user.
    table: its table of names.
    model: configuration of the network, JSON; empty for what is no network.
    notes: what the user should know.
  """

  title: str
  table: Sequence[Rule]
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def parameters(self, tensors: Mapping[str, np.ndarray]) -> int:
    """Number of elements of the tensors that become parameters."""
    paths, _, _ = rules.plan(self.table, tensors)
    return sum(tensors[n].size for _, names in paths.values() for n in names)


def vote(
  shapes: Mapping[str, tuple[int, ...]], places: Iterable[tuple[str, int]]
) -> int | None:
  """The commonest size at some axes, so that one wrong tensor stands out.

  Args:
    shapes: PyTorch names to shapes.
    places: (name, axis) that should all have the same size.

  Returns:
    The size, None if no place has any.
  """
  sizes = [
    shapes[name][axis]
    for name, axis in places
    if name in shapes and -len(shapes[name]) <= axis < len(shapes[name])
  ]
  votes = collections.Counter(n for n in sizes if n > 0).most_common(1)
  return votes[0][0] if votes else None


def depth(shapes: Iterable[str], limit: int) -> int:
  """One more than the largest index of a block.

  Args:
    shapes: PyTorch names.
    limit: a depth that no file with so many names can have.

  Returns:
    The number of blocks that the names speak of.

  Raises:
    NamesError: the limit is exceeded.
  """
  blocks = (re.match(r"blocks\.(\d+)\.", name) for name in shapes)
  last = max((int(m[1]) for m in blocks if m), default=0)
  if last >= limit:
    raise rules.NamesError("network", [f"blocks.{last}: unexpected"])
  return last + 1


def _hollow(shape: Sequence[int]) -> np.ndarray:
  """An array of zeros of any shape that takes no memory."""
  return np.broadcast_to(np.zeros((), np.float32), tuple(shape))


def expected(
  network: nn.Module,
  inputs: Sequence[tuple[int, ...]],
  table: Sequence[Rule],
  given: Mapping[str, tuple[int, ...]],
) -> Shapes:
  """PyTorch names and shapes of the parameters of a network.

  Args:
    network: the network.
    inputs: shapes of what it is called with.
    table: its table of names.
    given: shapes of the file, where a transform forgets the shape it had.

  Returns:
    PyTorch names to shapes, without buffers.
  """
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
  variables = jax.eval_shape(network.init, rngs.key(0, "init"), *arguments)
  params = jax.tree.map(lambda x: _hollow(x.shape), variables["params"])
  tensors = rules.to_torch(table, params, given)
  return {name: tensor.shape for name, tensor in tensors.items()}


def flax_shapes(
  table: Sequence[Rule], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  """The tree that a state dict would become: arrays that take no memory.

  Args:
    table: the table of names; names and shapes that do not fit are left out.
    shapes: PyTorch names to shapes.

  Returns:
    Nested dict of arrays that have the right shape and no content.
  """
  paths, _, _ = rules.plan(table, shapes)
  flat = {}
  for path, (rule, names) in paths.items():
    rank, forward, _ = transforms.TRANSFORMS[rule.transform]
    if rank in (None, len(shapes[names[0]])):
      layer = forward(_hollow(shapes[names[0]]))
      stacked = (len(names), *layer.shape) if rule.stack else layer.shape
      flat[path] = _hollow(stacked)
  return rules.nest(flat)


def _disagreeing_twin(name: str, tensors: Mapping[str, np.ndarray]) -> str:
  """Names the other half of a layer where either half may be the wrong one."""
  layer, _, leaf = name.rpartition(".")
  twin = f"{layer}.{'bias' if leaf == 'weight' else 'weight'}"
  if twin not in tensors or tensors[twin].shape[:1] == tensors[name].shape[:1]:
    return ""
  return f" (beside {twin} of {list(tensors[twin].shape)})"


def compare(
  tensors: Mapping[str, np.ndarray],
  wanted: Mapping[str, tuple[int, ...]],
  buffers: Mapping[str, tuple[int, ...]],
) -> list[str]:
  """Everything that is wrong with the names, shapes and dtypes of a file.

  Args:
    tensors: PyTorch names to tensors.
    wanted: names and shapes of the parameters, which are floating point.
    buffers: the same of what is beside them.

  Returns:
    One line for each missing, unexpected or misshapen name.
  """
  both = {**wanted, **buffers}
  problems = [f"{name}: missing" for name in both if name not in tensors]
  for name, tensor in tensors.items():
    if name not in both:
      problems.append(f"{name}: unexpected")
    elif tensor.shape != tuple(both[name]):
      shape, right = list(tensor.shape), list(both[name])
      beside = _disagreeing_twin(name, tensors)
      problems.append(f"{name}: shape {shape}, expected {right}{beside}")
    elif name in wanted and not jnp.issubdtype(tensor.dtype, jnp.floating):
      problems.append(f"{name}: {tensor.dtype}, expected floating point")
  return problems
