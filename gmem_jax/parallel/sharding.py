"""Where arrays live: the mesh, rules by path, host batches to global arrays.

The mesh has three named axes; slices of a TPU pod, and nodes of GPUs, follow
each other along the first. The batch is split over `data` and `fsdp`; the
parameters, their moving average and the optimizer's moments over `fsdp` and
`tensor`, by rules on their paths. Networks know nothing about it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec as P,
)

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# Arrays below this many elements are replicated: splitting them costs more in
# collectives than it saves in memory.
MIN_SHARDED_SIZE = 4096

# An array of more bytes than this is never whole on a device by accident: that
# would show only as memory that runs out.
MAX_REPLICATED_BYTES = 8 * 2**20

# (pattern searched in the parameter's path, spec of its trailing axes). The
# first match decides. A leading layer axis is not split: a scan reads one layer
# at a time, which would then be on one device only.
RULES: tuple[tuple[str, P], ...] = (
  # Matmuls that write to the residual stream are row parallel, those before
  # them column parallel: the width between the two is never gathered.
  (r"(proj|fc2|w3)/kernel$", P("tensor", "fsdp")),
  (r"kernel$", P("fsdp", "tensor")),
  (r"(bias|scale)$", P()),
  (r"pos_embed$", P()),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes; one of them may be -1: all remaining devices.

  Attributes:
    data: Replicas of the parameters; the batch is split over it.
    fsdp: Ways in which parameters and batch are split.
    tensor: Ways in which single matmuls are split.
    gather: When a device gets the parameters that others of `fsdp` have: those
      of a "layer" before it runs, and again in the backward pass; or all, in
      the dtype of the matmuls, once a "step", which sends a third less and
      takes more memory (ZeRO-1, Rajbhandari et al. (2019), arXiv 1910.02054).
  """

  data: int
  fsdp: int
  tensor: int
  gather: Literal["layer", "step"] = "layer"


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
  """Makes the device mesh, of all devices unless some are given.

  Where TPU chips form several slices, `data` leads from slice to slice, so that
  only the sum of the gradients crosses the slow network between them; `fsdp`
  and `tensor` stay inside. GPUs are taken in the order of their nodes: an axis
  may go on from one node to the next.

  Raises:
    ValueError: If the sizes do not multiply to the number of devices, or the
      number of slices does not divide `config.data`.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [config.data, config.fsdp, config.tensor]
  keys = ", ".join(
    f"config.mesh.{a}={s}" for a, s in zip(AXES, sizes, strict=True)
  )
  if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
    raise ValueError(f"{keys}: must be positive, and at most one of them -1")
  if -1 in sizes:
    rest = math.prod(s for s in sizes if s != -1)
    sizes[sizes.index(-1)] = max(len(devices) // rest, 1)
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"{keys}: a mesh of {' x '.join(map(str, sizes))} does not use the"
      f" {len(devices)} available device(s); set one size to -1 to use the rest"
    )
  # jax's default is Explicit, which wants a sharding in the type of each array.
  return Mesh(
    _arrange(sizes, keys, devices), AXES, axis_types=(AxisType.Auto,) * 3
  )


def _arrange(sizes: list[int], keys: str, devices: Sequence[Any]) -> np.ndarray:
  """The devices of a mesh [data, fsdp, tensor]; see `make_mesh`."""
  slices = len({_slice(d) for d in devices})
  if devices[0].platform != "tpu":
    # jax calls a node of GPUs a slice, and its make_mesh refuses several.
    in_order = sorted(devices, key=lambda d: (_slice(d), d.id))
    return np.array(in_order).reshape(sizes)
  if sizes[0] % slices:
    raise ValueError(
      f"{keys}: the devices are {slices} slices, whose network `fsdp` and"
      f" `tensor` cannot leave; set config.mesh.data to a multiple of {slices}"
    )
  # Split: an axis of ours may be a part of an axis of chips, as 8 of 16 are.
  if slices == 1:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_hybrid_device_mesh(
    (sizes[0] // slices, *sizes[1:]),
    (slices, 1, 1),
    devices,
    allow_split_physical_axes=True,
  )


def _slice(device: Any) -> int:
  """The slice of a TPU pod, or the node of GPUs, that a device belongs to."""
  return getattr(device, "slice_index", 0) or 0


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """The spec of one array of the training state, from the first matching rule.

  Args:
    path: Its path in the state, joined by "/".
    shape: An axis that the mesh does not divide is left whole; where that would
      leave a large array whole, it is split along any axis that can be.
    mesh: Gives the sizes of the axes.

  Raises:
    ValueError: If a large array matches no rule, or none of its axes can be
      split over `mesh.fsdp`.
  """
  if math.prod(shape) < MIN_SHARDED_SIZE:
    return P()
  matching = [spec for pattern, spec in RULES if re.search(pattern, path)]
  if not matching:
    raise ValueError(f"{path} {shape}: no rule of sharding.RULES matches")
  trailing = matching[0] if len(matching[0]) <= len(shape) else P()
  names = (None,) * (len(shape) - len(trailing)) + tuple(trailing)
  spec: list[Any] = [
    name if name and size % mesh.shape[name] == 0 else None
    for name, size in zip(names, shape, strict=True)
  ]
  fsdp = mesh.shape["fsdp"]
  # 4: the state is float32.
  if 4 * math.prod(shape) > MAX_REPLICATED_BYTES and "fsdp" not in spec:
    free = [
      axis
      for axis, (name, size) in enumerate(zip(spec, shape, strict=True))
      if (name is None or mesh.shape[name] == 1) and size % fsdp == 0
    ]
    if not free:
      raise ValueError(
        f"config.mesh.fsdp={fsdp}: divides no axis of {path} {shape}, so every"
        " device would have it whole; lower config.mesh.fsdp and raise"
        " config.mesh.data"
      )
    spec[max(free, key=lambda axis: shape[axis])] = "fsdp"
  return P(*spec) if any(spec) else P()


def state_shardings(state: Any, mesh: Mesh | AbstractMesh) -> Any:
  """The tree of `state` (arrays or shapes) with a sharding at each leaf."""

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return NamedSharding(mesh, spec_of(name, leaf.shape, mesh))

  return jax.tree_util.tree_map_with_path(one, state)


def abstract(state: Any, shardings: Any) -> Any:
  """Attaches shardings to shapes: the target a checkpoint is restored to."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
  """How many parts a batch is split into: data x fsdp."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device has whole, e.g. the bank."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh, *, steps_axis: bool = False) -> NamedSharding:
  """The sharding of a batch; `steps_axis`: after a leading axis of steps."""
  return NamedSharding(mesh, P(None, *BATCH) if steps_axis else BATCH)


def gather(params: Any, mesh: Mesh) -> Any:
  """Gives every device of the `fsdp` axis all parameters, inside a jitted step.

  Their gradients are summed onto the devices that own them.
  """
  owned = state_shardings(params, mesh)

  def without_fsdp(sharding):
    spec = (None if name == "fsdp" else name for name in sharding.spec)
    return NamedSharding(mesh, P(*spec))

  whole = jax.tree.map(without_fsdp, owned)
  constrain = jax.lax.with_sharding_constraint

  # The constraint's own gradient would sum onto every device.
  @jax.custom_vjp
  def gathered(params):
    return constrain(params, whole)

  gathered.defvjp(
    lambda params: (constrain(params, whole), None),
    lambda _, grads: (constrain(grads, owned),),
  )
  return gathered(params)


def place_batch(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """Makes the sharding constraint of activations [b …]: b is split, no more.

  With it a network gathers the kernels that it needs, one block at a time, and
  sums their gradients onto the devices that own them (fully sharded data
  parallelism).
  """
  # Left to itself XLA may instead put all examples on each device of the `fsdp`
  # axis, and split their width.
  where = NamedSharding(mesh, BATCH)
  return lambda x: jax.lax.with_sharding_constraint(x, where)


def process_part(mesh: Mesh, batch_size: int) -> tuple[int, int]:
  """Which part of a batch this process loads: (its number, number of parts).

  Parts are equal and in order. Processes whose devices have the same rows, as
  along the tensor axis, load the same part. `batch_size` counts all devices.

  Raises:
    ValueError: If the rows of this process's devices are no such part.
  """
  index = NamedSharding(mesh, BATCH).addressable_devices_indices_map(
    (batch_size,)
  )
  ranges = {rows[0].indices(batch_size)[:2] for rows in index.values()}  # type: ignore
  first, last = min(r[0] for r in ranges), max(r[1] for r in ranges)
  length = last - first
  if length != sum(b - a for a, b in ranges) or first % length:
    raise ValueError(
      f"config.mesh: the devices of process {jax.process_index()} have the"
      f" scattered rows {sorted(ranges)} of a batch of {batch_size}; let one"
      " process's devices be neighbours in data x fsdp"
    )
  return first // length, batch_size // length


def place(tree: Any, sharding: NamedSharding) -> Any:
  """Puts arrays that every process has whole on the devices of all.

  Global arrays may be among them; they only move.
  """

  def one(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, sharding)
    if sharding.is_fully_addressable:
      return jax.device_put(x, sharding)
    # device_put of a host array to other processes' devices would first compare
    # it on all of them, a collective for each array.
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(one, tree)


def to_global(batch: Any, sharding: NamedSharding) -> Any:
  """Assembles each process's rows, host arrays, into global arrays.

  Transfers are asynchronous.
  """
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    batch,
  )
