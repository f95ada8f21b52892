"""From a config and its data to a run: its memory and network."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gmem_jax.bank import (
  bank as bank_lib,
  edit,
  files as bank_files,
  lookup,
  sharding as bank_sharding,
)
from gmem_jax.config import networks, sections
from gmem_jax.files import paths, weights
from gmem_jax.models import conditioning, dit, retrieval, transformer
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import processes, sharding
from gmem_jax.train import (
  checkpoint,
  dataset as dataset_lib,
  state as train_state,
)


@dataclasses.dataclass(frozen=True)
class RunMemory:
  """What sampling needs besides parameters; kept in the run's directory.

  Attributes:
    bank: The memory bank, on the devices.
    info: Where it comes from.
    stats: Latent statistics.
    latent_shape: h, w, c.
    token_dim: Width of the projection's targets; 0 without a projection.
    unit: What `lookup_bank` makes of the bank; not kept in the directory, as it
      follows from it.
  """

  bank: bank_lib.MemoryBank
  info: bank_lib.BankInfo
  stats: protocols.LatentStats
  latent_shape: tuple[int, int, int]
  token_dim: int
  unit: bank_lib.MemoryBank | None = None


def check_batch(config: sections.Config, mesh: Mesh) -> None:
  """Refuses a batch that the devices cannot share equally.

  Raises:
    ValueError: If the batch or its parts do not divide over the mesh.
  """
  ways = sharding.batch_ways(mesh)
  batch, parts = config.train.batch_size, config.train.accumulation
  if batch % ways:
    raise ValueError(
      f"config.train.batch_size={batch}: must be a multiple of the mesh's data"
      f" x fsdp = {ways}"
    )
  if batch % (ways * parts):
    raise ValueError(
      f"config.train.accumulation={parts}: must divide the {batch // ways}"
      f" examples that each of data x fsdp = {ways} has of"
      f" config.train.batch_size={batch}"
    )


def network(
  config: sections.Config, memory: RunMemory
) -> transformer.FlowTransformer:
  """Builds the network, whose outer widths the data decide."""
  return dit.build(
    config.model,
    channels=memory.latent_shape[-1],
    snippet_dim=memory.bank.width,
    token_dim=memory.token_dim,
  )


def make_init(
  config: sections.Config, memory: RunMemory
) -> Callable[[], train_state.TrainState]:
  """() -> the state at step 0; see `train_state.make_init`."""
  return train_state.make_init(
    network(config, memory),
    memory.latent_shape,
    train_state.make_optimizer(config.optim),
    config.seed,
  )


def lookup_bank(
  config: sections.Config, bank: bank_lib.MemoryBank
) -> bank_lib.MemoryBank | None:
  """What the network's neighbours are looked up in.

  Returns:
    The bank's rows as unit vectors, for lookup by cosine, placed like the bank;
    or None for a network that does not attend to neighbours.

  Raises:
    ValueError: If the bank has too few rows.
  """
  if not conditioning.uses_cross(config.model.conditioning):
    return None
  retrieval.check_bank(config.retrieval, bank)
  where = bank.sharding
  # The kernels want multiples of 8 rows, of every shard.
  multiple = 8 if where.is_fully_replicated else 8 * where.num_devices
  # Normalised once, as every step's lookup goes through all rows.
  unit = functools.partial(lookup.unit, multiple=multiple)
  return jax.jit(unit, out_shardings=where)(bank)


def make_retrieve(
  config: sections.Config, bank: bank_lib.MemoryBank | None
) -> retrieval.RetrieveFn | None:
  """Makes the lookup of neighbours, for training and sampling alike.

  Args:
    config: Decides whether there is one; None is returned without.
    bank: What `lookup_bank` made, or its shapes with shardings.
  """
  if bank is None or not conditioning.uses_cross(config.model.conditioning):
    return None
  placement = bank_sharding.lookup_placement(bank)
  return retrieval.make_retrieve(config.retrieval, placement, config.seed)


def make_memory(
  config: sections.Config, dataset: dataset_lib.Dataset, mesh: Mesh
) -> RunMemory:
  """Stores the bank as configured and puts it on the devices of a mesh."""
  train, token_dim = dataset.train, 0
  bank, info = _stored(config, train.bank, train.info)
  if config.loss.projection_weight and train.token_shape is not None:
    token_dim = train.token_shape[1]
  bank = bank_sharding.place(bank, mesh, config.bank.placement)
  return RunMemory(
    bank=bank,
    info=info,
    stats=sharding.place(train.stats, sharding.replicated(mesh)),
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
  compressed = edit.compress(bank_lib.on_host(bank), info, config.bank.storage)
  return compressed.bank, compressed.info


def save_memory(path: paths.Path, memory: RunMemory) -> None:
  """Keeps the memory in the run's directory, or checks that it is the same.

  Raises:
    ValueError: If another bank is kept there: the data has changed.
  """
  if processes.agree(path.exists()):
    if checkpoint.exist(path.parent / "checkpoints"):
      stored = _info(weights.read_tree_metadata(path), path).digest
      # Rows are known by number: of other images they mean other snippets.
      if stored != memory.info.digest:
        raise ValueError(
          f"{path} keeps the bank of other images (digest {stored[:12]}, not"
          f" {memory.info.digest[:12]}): the data of this run has changed. Take"
          " another --workdir."
        )
      return
    # Left by a try that got to no checkpoint, perhaps of another config.
    if processes.is_main():
      paths.remove(path)
    processes.wait_for_all("memory")
  weights.save_tree(
    path,
    _arrays(memory.bank) | {"mean": memory.stats.mean, "std": memory.stats.std},
    {
      "info": dataclasses.asdict(memory.info),
      "latent_shape": list(memory.latent_shape),
      "token_dim": memory.token_dim,
    },
  )


def _info(metadata: dict[str, Any], path: paths.Path) -> bank_lib.BankInfo:
  return bank_files.info_of(metadata.get("info"), f"info of {path}")


def _arrays(bank: bank_lib.MemoryBank) -> dict[str, Any]:
  """A bank's arrays by name, without padding."""
  # The padding is the mesh's: a later start may have another mesh.
  bank = bank_sharding.to_save(bank)  # pyright: ignore
  arrays = {
    name: getattr(bank, name) for name in ("rows", "scales", "residuals")
  }
  return {name: x for name, x in arrays.items() if x is not None}


def load_memory(
  path: paths.Path,
  mesh: Mesh,
  placement: networks.Placement | None = "auto",
  *,
  rows: bool = True,
) -> RunMemory:
  """Reads the memory of a run and puts it on a mesh.

  Args:
    path: The directory that `save_memory` wrote.
    mesh: For the latent statistics, and the bank.
    placement: None leaves the bank on the host: sampling reads a few rows.
    rows: Whether to read the bank's rows; else it has their shape alone, and
      stays where it is.

  Raises:
    ValueError: If there is none.
  """
  wanted = () if rows else ("mean", "std")
  tree, metadata = weights.load_tree(path, None, wanted)
  info = _info(metadata, path)
  try:
    stats = {name: tree.pop(name) for name in ("mean", "std")}
    if not rows:
      shape = info.size, info.width
      tree = {"rows": jax.ShapeDtypeStruct(shape, jnp.float32)}
    fields: Any = tree
    bank = bank_lib.MemoryBank(**fields)
    latent_shape = tuple(metadata["latent_shape"])
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is damaged: {error!r}") from None
  if rows and placement is not None:
    bank = bank_sharding.place(bank, mesh, placement)
  return RunMemory(
    bank=bank,
    info=info,
    stats=protocols.LatentStats(
      **sharding.place(stats, sharding.replicated(mesh))
    ),
    latent_shape=latent_shape,
    # Runs made before networks could have a projection have none.
    token_dim=metadata.get("token_dim", 0),
  )
