"""What to sample with: a run's newest checkpoint, or converted weights."""

import dataclasses
import pathlib
from typing import Any

import jax

from gmem_jax.bank import bank as bank_lib, sharding as bank_sharding
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.models import transformer
from gmem_jax.sample import pretrained, run_sampling, sampler as sampler_lib
from gmem_jax.train import run_directory, setup


@dataclasses.dataclass(frozen=True)
class Source:
  """What to sample with.

  Attributes:
    name: Names the images' directory.
    model: The network.
    weights: All arrays of the sampler.
    latent_shape: h, w, c.
    first_release: See `sample.make_sample_fn`.
    bank: The bank, or None if there is none.
    info: Where network and latent statistics come from; JSON.
  """

  name: str
  model: transformer.FlowTransformer
  weights: sampler_lib.Weights
  latent_shape: tuple[int, int, int]
  first_release: bool
  bank: pretrained.Bank | None
  info: dict[str, Any]


def load(
  config: sections.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> Source:
  """Loads what the config names.

  Args:
    config: The run.
    workdir: Its directory.
    mesh: The devices.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  if config.sample.network:
    source = _from_converted(config)
  else:
    source = _from_run(config, workdir, mesh)
  if source.weights.bank is not None or not transformer.uses_cross(
    config.model.conditioning
  ):
    return source
  bank = bank_sharding.place(
    bank_lib.MemoryBank(bank_of(source).rows), mesh, config.bank.placement
  )
  weights = dataclasses.replace(
    source.weights, bank=setup.lookup_bank(config, bank)
  )
  return dataclasses.replace(source, weights=weights)


def _from_run(
  config: sections.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> Source:
  """The run's newest checkpoint and its memory."""
  if not (workdir / "config.json").exists():
    raise ValueError(
      f"--workdir={workdir}: no run was trained there, and"
      " config.sample.network names no converted weights"
    )
  run_directory.claim(config, workdir)
  memory = setup.load_memory(workdir / "memory", mesh, config.bank.placement)
  step, params = run_sampling.load_params(config, workdir, mesh)
  if not config.sample.bank:
    unit = setup.lookup_bank(config, memory.bank)
    memory = dataclasses.replace(memory, unit=unit)
  weights = run_sampling.make_weights(config, memory, params)
  bank = pretrained.Bank(
    bank_lib.decode(bank_sharding.to_save(memory.bank)),
    None,
    {"digest": memory.info.digest},
  )
  name = f"step_{step:07d}_{config.sample.weights}"
  if config.sample.bank:
    name += f"_bank_{pathlib.Path(config.sample.bank).name}"
  return Source(
    name=name,
    model=setup.network(config, memory),
    weights=weights,
    latent_shape=memory.latent_shape,
    first_release=False,
    bank=pretrained.load_bank(config) if config.sample.bank else bank,
    info={"step": step, "weights": config.sample.weights},
  )


def _from_converted(config: sections.Config) -> Source:
  """Converted weights."""
  network = pretrained.load_network(config)
  tokenizer = load_encoders.load_decoder(config)
  stats = load_encoders.load_stats(config, tokenizer, network.latent_shape[-1])
  bank = pretrained.load_bank(config) if config.sample.bank else network.bank
  name = pathlib.Path(config.sample.network).name
  if network.info["weights"]:
    name += f"_{network.info['weights']}"
  return Source(
    name=name,
    model=network.model,
    weights=sampler_lib.Weights(network.params, tokenizer, stats),
    latent_shape=network.latent_shape,
    first_release=network.first_release,
    bank=bank,
    info=network.info,
  )


def bank_of(source: Source) -> pretrained.Bank:
  """The bank, which must be there and fit the network.

  Args:
    source: What to sample with.

  Raises:
    ValueError: If it is not or does not.
  """
  if source.bank is None:
    raise ValueError(
      "config.sample.bank is empty, and no bank came with"
      " config.sample.network: convert one and name it"
    )
  width, wanted = source.bank.rows.shape[1], source.model.snippet_dim
  if width != wanted:
    raise ValueError(
      f"config.sample.bank: its rows are {width} wide, the network takes"
      f" {wanted}"
    )
  return source.bank
