"""FLOPs of a traced function: its matmuls and convolutions."""

import math
from typing import Any

from jax.extend import core


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr, devices: int = 1) -> float:
  """Counts the FLOPs of matmuls and convolutions, two for a multiply-add.

  Args:
    jaxpr: The traced function; that of a training step includes the backward
      pass and what rematerialisation repeats.
    devices: Over how many devices a `shard_map` inside runs: its body is that
      of one of them.

  Returns:
    FLOPs over all devices. A loop with unknown trips (an adaptive solver)
    counts once, and of branches the most expensive.
  """
  # XLA's own cost analysis counts the body of a loop once, however often it
  # runs: the layers and the sampler's steps are loops.
  if isinstance(jaxpr, core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  return float(sum(_equation(eqn, devices) for eqn in jaxpr.eqns))


def _equation(eqn: core.JaxprEqn, devices: int) -> float:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    return _dot(eqn)
  if name == "conv_general_dilated":
    return _conv(eqn)
  if name == "cond":
    return max(count(branch, devices) for branch in params["branches"])
  times = 1
  if name == "scan":
    times = params["length"]
  elif name == "shard_map":
    times = devices
  inner = sum(count(jaxpr, devices) for jaxpr in _inner(params))
  return float(times * inner)


def _inner(params: dict[str, Any]) -> list[core.Jaxpr | core.ClosedJaxpr]:
  """The functions that an equation calls: loops, remat, jit, custom rules."""
  kinds = (core.Jaxpr, core.ClosedJaxpr)
  return [value for value in params.values() if isinstance(value, kinds)]


def _dot(eqn: core.JaxprEqn) -> float:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  shape = _shape(eqn.invars[0])
  depth = math.prod(shape[axis] for axis in contracted)
  return 2.0 * depth * math.prod(_shape(eqn.outvars[0]))


def _conv(eqn: core.JaxprEqn) -> float:
  kernel = _shape(eqn.invars[1])
  outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  # Kernel elements that one output sums: its window and input channels.
  depth = math.prod(kernel) / outputs
  return 2.0 * depth * math.prod(_shape(eqn.outvars[0]))


def _shape(atom: Any) -> tuple[int, ...]:
  """The shape of an input or output of an equation."""
  return atom.aval.shape
