"""Names and shapes that a file must have, from the network it is of.

The lists of the published files (third_party/manifests) are what these
functions give for the published networks; a test holds them against each other.
So no list has to be installed, and a network of any other size is checked as
strictly as a published one.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import rngs
from gmem_jax.convert import rules
from gmem_jax.convert.rules import Rule

# PyTorch name -> shape.
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Identity:
  """A file whose names and shapes are right.

  Attributes:
    title: What it is, for the user.
    table: Its table of names.
    model: Configuration of the network, JSON; empty for banks and statistics.
    notes: What the user should know.
  """

  title: str
  table: Sequence[Rule]
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def parameters(self, tensors: Mapping[str, np.ndarray]) -> int:
    """Number of elements of the tensors that become parameters."""
    paths, _, _ = rules.plan(self.table, tensors)
    return sum(tensors[n].size for _, names in paths.values() for n in names)


def shapes_of(tensors: Mapping[str, np.ndarray]) -> Shapes:
  """The shapes of a state dict."""
  return {name: tensor.shape for name, tensor in tensors.items()}


def deciding(
  title: str, shapes: Shapes, ranks: Mapping[str, int]
) -> list[tuple[int, ...]]:
  """The shapes that a configuration is read off.

  Without them the configuration would be a guess, and so would be everything
  said of the other names: the check ends here.

  Args:
    title: What the file should be.
    shapes: Those of the file.
    ranks: Name -> number of axes.

  Raises:
    NamesError: Listing those that are missing, or have other or empty axes.
  """
  problems = [f"{name}: missing" for name in ranks if name not in shapes]
  for name, rank in ranks.items():
    shape = shapes.get(name, (1,) * rank)
    if len(shape) != rank or 0 in shape:
      problems.append(
        f"{name}: shape {list(shape)}, expected {rank} axes, none empty"
      )
  rules.refuse(f"not a complete {title}", problems)
  return [tuple(shapes[name]) for name in ranks]


def count(names: Iterable[str], stem: str, limit: int) -> int:
  """One more than the largest index in a list of modules; 1 if there is none.

  Args:
    names: Of the file.
    stem: What the list is called, e.g. "blocks".
    limit: More than any file with so many names can have.

  Raises:
    NamesError: If an index exceeds the limit.
  """
  indices = (re.match(rf"{stem}\.(\d+)\.", name) for name in names)
  last = max((int(m[1]) for m in indices if m), default=0)
  # A network of that size would be traced before the names are compared.
  if last >= limit:
    raise rules.NamesError("network", [f"{stem}.{last}: unexpected"])
  return last + 1


def expected(
  network: nn.Module,
  inputs: Sequence[tuple[int, ...]],
  table: Sequence[Rule],
  given: Shapes,
) -> dict[str, tuple[int, ...]]:
  """PyTorch names and shapes of a network's parameters, without buffers.

  The network is called with `inputs`; `given` are shapes of the file, where a
  transform forgets the shape it had.
  """
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
  variables = jax.eval_shape(network.init, rngs.key(0, "init"), *arguments)
  # Broadcast zeros have the shapes of the parameters, but take no memory.
  zero = np.zeros((), np.float32)
  params = jax.tree.map(
    lambda x: np.broadcast_to(zero, x.shape), variables["params"]
  )
  # The tables of names know one direction for each: no second list of names.
  tensors = rules.to_torch(table, params, given)
  return {name: tensor.shape for name, tensor in tensors.items()}


def _disagreeing_twin(name: str, tensors: Mapping[str, np.ndarray]) -> str:
  """Names the other half of a layer where either half may be the wrong one."""
  layer, _, leaf = name.rpartition(".")
  twin = f"{layer}.{'bias' if leaf == 'weight' else 'weight'}"
  if twin not in tensors or tensors[twin].shape[:1] == tensors[name].shape[:1]:
    return ""
  return f" (beside {twin} of {list(tensors[twin].shape)})"


def compare(
  tensors: Mapping[str, np.ndarray], parameters: Shapes, buffers: Shapes
) -> list[str]:
  """Everything that is wrong with the names, shapes and dtypes of a file.

  One line for each missing, unexpected or misshapen name. Parameters must be
  floating point, buffers may have any dtype.
  """
  both = {**parameters, **buffers}
  problems = [f"{name}: missing" for name in both if name not in tensors]
  for name, tensor in tensors.items():
    if name not in both:
      problems.append(f"{name}: unexpected")
    elif tensor.shape != tuple(both[name]):
      shape, right = list(tensor.shape), list(both[name])
      beside = _disagreeing_twin(name, tensors)
      problems.append(f"{name}: shape {shape}, expected {right}{beside}")
    # Quantised weights have the names and shapes of others.
    elif name in parameters and not jnp.issubdtype(tensor.dtype, jnp.floating):
      problems.append(f"{name}: {tensor.dtype}, expected floating point")
  return problems
