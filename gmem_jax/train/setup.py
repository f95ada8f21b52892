"""From a config and its data to the parts of a run."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from gmem_jax import rngs
from gmem_jax.bank import (
  bank as bank_lib,
  edit,
  lookup,
  sharding as bank_sharding,
)
from gmem_jax.config import networks, sections
from gmem_jax.files import weights
from gmem_jax.models import build, retrieval, transformer
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import processes, sharding
from gmem_jax.train import (
  dataset as dataset_lib,
  optimizer as optimizer_lib,
  state as train_state,
  step as train_step,
)


@dataclasses.dataclass(frozen=True)
class Memory:
  """What sampling needs besides parameters; kept in the run's directory.

  Attributes:
    bank: The memory bank, on the devices.
    info: Where it comes from.
    stats: Latent statistics.
    latent_shape: h, w, c.
    token_dim: Width of the projection's targets; 0 without a projection.
    unit: What `lookup_bank` makes of the bank; not kept in the directory.
  """

  bank: bank_lib.MemoryBank
  info: bank_lib.BankInfo
  stats: protocols.LatentStats
  latent_shape: tuple[int, int, int]
  token_dim: int
  unit: bank_lib.MemoryBank | None = None

  @property
  def step_bank(self) -> bank_lib.MemoryBank:
    """The bank as the training step takes it."""
    return self.bank if self.unit is None else self.unit


def network(
  config: sections.Config, memory: Memory
) -> transformer.FlowTransformer:
  """Builds the network for a memory.

  Args:
    config: The run.
    memory: Decides the latent's channels, and the widths of snippet and
      projection.
  """
  return build.build(
    config.model,
    channels=memory.latent_shape[-1],
    snippet_dim=memory.bank.width,
    token_dim=memory.token_dim,
  )


def make_init(config: sections.Config, memory: Memory) -> Any:
  """The function that creates the run's state at step 0.

  Args:
    config: The run.
    memory: Its memory.

  Returns:
    () -> TrainState, pure.
  """
  net = network(config, memory)
  width = memory.bank.width if config.model.conditioning != "none" else None
  inputs = train_step.example_inputs(
    memory.latent_shape, width, config.model.conditioning
  )
  return train_state.make_init(
    lambda: net.init(rngs.key(config.seed, "init"), *inputs)["params"],
    optimizer_lib.make_optimizer(config.optim),
  )


def lookup_bank(
  config: sections.Config, bank: bank_lib.MemoryBank
) -> bank_lib.MemoryBank | None:
  """What the network's neighbours are looked up in.

  Args:
    config: The run.
    bank: Raw rows, on the devices.

  Returns:
    Unit rows, for lookup by cosine, placed like the bank; or None for a network
    that does not attend to neighbours.

  Raises:
    ValueError: If the bank has too few rows.
  """
  if not transformer.uses_cross(config.model.conditioning):
    return None
  retrieval.check_bank(config.retrieval, bank)
  where = bank_sharding.of(bank)
  # The kernels want multiples of 8 rows, of every shard.
  multiple = 8 if where.is_fully_replicated else 8 * where.num_devices
  unit = functools.partial(lookup.unit, multiple=multiple)
  return jax.jit(unit, out_shardings=where)(bank)


def make_retrieve(
  config: sections.Config, bank: bank_lib.MemoryBank | None
) -> retrieval.RetrieveFn | None:
  """How neighbours are looked up, in training and in sampling.

  Args:
    config: The run.
    bank: What `lookup_bank` made, or its shapes with shardings.

  Returns:
    The function; None for a network that does not attend to neighbours.
  """
  if bank is None or not transformer.uses_cross(config.model.conditioning):
    return None
  placement = bank_sharding.lookup_placement(bank)
  return retrieval.make_retrieve(config.retrieval, placement, config.seed)


def make_memory(
  config: sections.Config, dataset: dataset_lib.Dataset, mesh: Mesh
) -> Memory:
  """Puts what sampling needs on the devices of a mesh.

  Args:
    config: The run; decides how the bank is stored and placed.
    dataset: The encoded images.
    mesh: The mesh.
  """
  everywhere = sharding.replicated(mesh)
  train, token_dim = dataset.train, 0
  bank, info = _stored(config, train.bank, train.info)
  if config.loss.projection_weight and train.token_shape is not None:
    token_dim = train.token_shape[1]
  bank = bank_sharding.place(bank, mesh, config.bank.placement)
  return Memory(
    bank=bank,
    info=info,
    stats=sharding.place(train.stats, everywhere),
    latent_shape=train.latent_shape,
    token_dim=token_dim,
    unit=lookup_bank(config, bank),
  )


def _stored(
  config: sections.Config, bank: bank_lib.MemoryBank, info: bank_lib.BankInfo
) -> tuple[bank_lib.Bank, bank_lib.BankInfo]:
  """The bank with its rows of the configured type."""
  if config.bank.storage == bank.storage:
    return bank, info
  found = edit.compress(bank_lib.on_host(bank), info, config.bank.storage)
  return found.bank, found.info


def save_memory(path: pathlib.Path, memory: Memory) -> None:
  """Keeps the memory in the run's directory, or checks that it is the same.

  Args:
    path: The directory.
    memory: The memory.

  Raises:
    ValueError: If another bank is kept there: the data has changed.
  """
  if processes.agree(path.exists()):
    metadata = weights.read_tree_metadata(path)
    if metadata["info"]["digest"] != memory.info.digest:
      raise ValueError(
        f"{path} keeps the bank of other images (digest"
        f" {metadata['info']['digest'][:12]}, not {memory.info.digest[:12]}):"
        " the data of this run has changed. Take another --workdir."
      )
    return
  weights.save_tree(
    path,
    {
      **_arrays(memory.bank),
      "mean": memory.stats.mean,
      "std": memory.stats.std,
    },
    {
      "info": dataclasses.asdict(memory.info),
      "latent_shape": list(memory.latent_shape),
      "token_dim": memory.token_dim,
    },
  )


def _arrays(bank: bank_lib.MemoryBank) -> dict[str, Any]:
  """A bank's arrays by name, without padding."""
  bank = bank_sharding.to_save(bank)  # pyright: ignore
  names = ("rows", "scales", "residuals")
  found = {name: getattr(bank, name) for name in names}
  return {name: x for name, x in found.items() if x is not None}


def load_memory(
  path: pathlib.Path,
  mesh: Mesh,
  placement: networks.Placement = "auto",
) -> Memory:
  """Reads the memory of a run.

  Args:
    path: The directory.
    mesh: The mesh to put it on.
    placement: How to put the bank there.

  Raises:
    ValueError: If there is none.
  """
  tree, metadata = weights.load_tree(path, None)
  stats = {name: tree.pop(name) for name in ("mean", "std")}
  bank = bank_lib.MemoryBank(**tree)
  return Memory(
    bank=bank_sharding.place(bank, mesh, placement),
    info=bank_lib.BankInfo(**metadata["info"]),
    stats=protocols.LatentStats(
      **sharding.place(stats, sharding.replicated(mesh))
    ),
    latent_shape=tuple(metadata["latent_shape"]),
    # Runs made before networks could have a projection have none.
    token_dim=metadata.get("token_dim", 0),
  )
