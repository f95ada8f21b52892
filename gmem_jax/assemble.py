"""From a config to the parts of a run: data, frozen networks, network."""

import dataclasses
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from gmem_jax import (
  checkpoint,
  optim,
  pretrained,
  rngs,
  sharding,
  train_state,
  train_step,
)
from gmem_jax.bank import bank as bank_lib, lookup
from gmem_jax.config import Config
from gmem_jax.data import prepare, sources
from gmem_jax.encoders import protocols
from gmem_jax.models import build, conditioning, transformer


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The images of a run, encoded.

  Attributes:
    train_images: The images trained on.
    heldout_images: The images held out.
    train: Records, bank and statistics of the first.
    heldout: The same of the second; its bank is never trained on.
  """

  train_images: sources.Images
  heldout_images: sources.Images
  train: prepare.Prepared
  heldout: prepare.Prepared


@dataclasses.dataclass(frozen=True)
class Memory:
  """What sampling needs besides parameters; kept in the run's directory.

  Attributes:
    bank: The memory bank, on every device.
    info: Where it comes from.
    stats: Latent statistics.
    latent_shape: h, w, c.
  """

  bank: bank_lib.MemoryBank
  info: bank_lib.BankInfo
  stats: protocols.LatentStats
  latent_shape: tuple[int, int, int]


def require_data(config: Config) -> None:
  """Refuses to train without training data.

  Args:
    config: The run.

  Raises:
    ValueError: If the config names none.
  """
  if config.data.source == "none":
    raise ValueError(
      "config.data.source='none': there is no reader of this config's training"
      " data yet, so it can only sample: --mode=sample with"
      " --config.sample.network=CONVERTED_WEIGHTS"
    )


def load_dataset(config: Config) -> Dataset:
  """Reads and encodes the images.

  Args:
    config: The run.

  Raises:
    ValueError: On more held-out images than there are, on images of another
      size than the config's, and if the config has no images at all.
  """
  require_data(config)
  images = {"digits": sources.digits}[config.data.source]()
  side = images.pixels.shape[1]
  if side != config.encoder.image_size:
    raise ValueError(
      f"config.encoder.image_size={config.encoder.image_size}: the images of"
      f" config.data.source={config.data.source!r} are {side} pixels wide"
    )
  kept, held = sources.split(images, config.data.holdout, config.seed)
  tokenizer, encoder = encoders(config, images.pixels.shape[-1])
  return Dataset(
    train_images=kept,
    heldout_images=held,
    train=prepare.prepare(kept, tokenizer, encoder),
    heldout=prepare.prepare(held, tokenizer, encoder),
  )


def encoders(
  config: Config, channels: int
) -> tuple[protocols.Tokenizer, protocols.FeatureEncoder]:
  """Builds the frozen networks.

  Args:
    config: The run.
    channels: Channels of the images.
  """
  return (
    pretrained.load_tokenizer(config),
    pretrained.load_features(config, channels),
  )


def network(config: Config, memory: Memory) -> transformer.FlowTransformer:
  """Builds the network for a memory.

  Args:
    config: The run.
    memory: Decides the latent's channels and the snippet's width.
  """
  return build.build(
    config.model,
    channels=memory.latent_shape[-1],
    snippet_dim=memory.bank.width,
    token_dim=0,
  )


def make_init(config: Config, memory: Memory) -> Any:
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
    optim.make_optimizer(config.optim),
  )


def step_bank(config: Config, bank: bank_lib.MemoryBank) -> bank_lib.MemoryBank:
  """The bank as training and sampling take it.

  Args:
    config: The run.
    bank: Raw rows.

  Returns:
    Unit rows, for lookup by cosine, if the network attends to neighbours; else
    the bank.

  Raises:
    ValueError: If the bank has too few rows.
  """
  if not conditioning.uses_cross(config.model.conditioning):
    return bank
  config.retrieval.check(bank)
  return jax.jit(lookup.unit)(bank)


def make_memory(dataset: Dataset, mesh: Mesh) -> Memory:
  """Puts what sampling needs on every device of a mesh.

  Args:
    dataset: The encoded images.
    mesh: The mesh.
  """
  everywhere = sharding.replicated(mesh)
  train = dataset.train
  return Memory(
    bank=jax.device_put(train.bank, everywhere),
    info=train.info,
    stats=jax.device_put(train.stats, everywhere),
    latent_shape=train.records.fields["latent"].shape[1:],
  )


def save_memory(path: pathlib.Path, memory: Memory) -> None:
  """Keeps the memory in the run's directory, or checks that it is the same.

  Args:
    path: The directory.
    memory: The memory.

  Raises:
    ValueError: If another bank is kept there: the data has changed.
  """
  if path.exists():
    metadata = checkpoint.read_metadata(path)
    if metadata["info"]["digest"] != memory.info.digest:
      raise ValueError(
        f"{path} keeps the bank of other images (digest"
        f" {metadata['info']['digest'][:12]}, not {memory.info.digest[:12]}):"
        " the data of this run has changed. Take another --workdir."
      )
    return
  checkpoint.save_tree(
    path,
    {
      "rows": memory.bank.rows,
      "mean": memory.stats.mean,
      "std": memory.stats.std,
    },
    {
      "info": dataclasses.asdict(memory.info),
      "latent_shape": list(memory.latent_shape),
    },
  )


def load_memory(path: pathlib.Path, mesh: Mesh) -> Memory:
  """Reads the memory of a run.

  Args:
    path: The directory.
    mesh: The mesh to put it on.

  Raises:
    ValueError: If there is none.
  """
  tree, metadata = checkpoint.load_tree(path, sharding.replicated(mesh))
  return Memory(
    bank=bank_lib.MemoryBank(rows=tree["rows"]),
    info=bank_lib.BankInfo(**metadata["info"]),
    stats=protocols.LatentStats(mean=tree["mean"], std=tree["std"]),
    latent_shape=tuple(metadata["latent_shape"]),
  )
