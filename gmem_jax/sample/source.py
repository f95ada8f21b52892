"""What to sample with: a run's checkpoint, or converted weights."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from gmem_jax.bank import (
  bank as bank_lib,
  files as bank_files,
  sharding as bank_sharding,
)
from gmem_jax.config import sections
from gmem_jax.data import load_encoders, row_images
from gmem_jax.files import paths, weights as weights_lib
from gmem_jax.models import conditioning, dit
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding
from gmem_jax.sample import (
  host_bank,
  prior as prior_lib,
  sampler as sampler_lib,
  snippets,
)
from gmem_jax.train import checkpoint, directory as directory_lib, setup


@dataclasses.dataclass(frozen=True)
class SampleSource:
  """What to sample with.

  Attributes:
    weights: All arrays of the sampler.
    bank: Where snippets come from, or None if there is no bank.
    info: Where the network comes from; JSON.
    bank_name: Names the bank, if it is not the run's own.
    encoder: Loads the feature encoder, once for all that share it.
    prior: Loads the prior, likewise.
    step: The checkpoint that was asked for; None for the newest.
  """

  network: str
  sampler: sampler_lib.Sampler
  weights: sampler_lib.SampleWeights
  bank: host_bank.HostBank | None
  info: dict[str, Any]
  bank_name: str = ""
  encoder: Callable[[], protocols.FeatureEncoder] | None = None
  prior: Callable[[], prior_lib.Prior] | None = None
  step: int | None = None

  @property
  def name(self) -> str:
    """Names the images' directory."""
    bank = self.bank_name and f"_bank_{self.bank_name}"
    return self.network + bank

  def require_bank(
    self, argument: str = "config.sample.bank"
  ) -> host_bank.HostBank:
    """The bank.

    Raises:
      ValueError: If there is none, or it does not fit the network; then the
        argument is named that gave it.
    """
    if self.bank is None:
      raise ValueError(
        "config.sample.bank is empty, and no bank came with"
        " config.sample.network: convert one and name it"
        " (config.sample.draw='prior' reads none)"
      )
    width = self.bank.rows.shape[1]
    if width != self.sampler.network.snippet_dim:
      raise ValueError(
        f"{argument}: its rows are {width} wide, the network takes"
        f" {self.sampler.network.snippet_dim}"
      )
    return self.bank


def load(
  config: sections.Config,
  workdir: paths.Path,
  mesh: jax.sharding.Mesh,
  step: int | None = None,
) -> SampleSource:
  """Loads converted weights if `sample.network` names some, else the run.

  Of the run, the checkpoint of `step`, or the newest that can be read.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  if config.sample.network and step is not None:
    raise ValueError(f"step={step}: converted weights have no checkpoints")
  if config.sample.network:
    source = _from_converted(config, mesh)
  else:
    source = _from_run(config, workdir, mesh, step)
  *_, channels = protocols.image_shape(
    source.weights.tokenizer, source.sampler.latent_shape
  )
  source = dataclasses.replace(
    source,
    encoder=functools.cache(lambda: snippets.load_encoder(config, channels)),
    prior=functools.cache(
      lambda: prior_lib.load(workdir, source.sampler.network.snippet_dim)
    ),
  )
  if config.sample.bank:
    return with_bank(config, source, mesh)
  return _attending(config, source, mesh)


def with_bank(
  config: sections.Config,
  source: SampleSource,
  mesh: jax.sharding.Mesh,
  argument: str = "config.sample.bank",
) -> SampleSource:
  """The same network with the bank that `sample.bank` names.

  Raises:
    ValueError: See `host_bank.load`.
  """
  bank, name = host_bank.load(config, argument), ""
  if not config.sample.network:
    name = pathlib.Path(config.sample.bank).absolute().name
  weights = dataclasses.replace(source.weights, bank=None)
  other = dataclasses.replace(
    source, bank=bank, bank_name=name, weights=weights
  )
  return _attending(config, other, mesh)


def _attending(
  config: sections.Config, source: SampleSource, mesh: jax.sharding.Mesh
) -> SampleSource:
  """Gives a network with cross-attention its bank to look up in."""
  searched = conditioning.uses_cross(config.model.conditioning)
  if not searched or source.weights.bank is not None:
    return source
  bank = bank_sharding.place(
    bank_lib.MemoryBank(source.require_bank().rows),
    mesh,
    config.bank.placement,
  )
  unit = setup.lookup_bank(config, bank)
  return dataclasses.replace(
    source,
    weights=dataclasses.replace(source.weights, bank=unit),
    sampler=dataclasses.replace(
      source.sampler, retrieve=setup.make_retrieve(config, unit)
    ),
  )


def _from_run(
  config: sections.Config,
  workdir: paths.Path,
  mesh: jax.sharding.Mesh,
  asked: int | None,
) -> SampleSource:
  """The run's checkpoint, of the step that is asked for, and its memory."""
  if not (workdir / "config.json").exists():
    raise ValueError(
      f"--workdir={workdir}: no run was trained there, and"
      " config.sample.network names no converted weights"
    )
  if not checkpoint.exist(workdir / "checkpoints"):
    # Until then its config may be one that training has refused.
    raise ValueError(f"--workdir={workdir}: the run has no checkpoint yet")
  directory_lib.check(config, workdir)
  reads_bank = not config.sample.bank and config.sample.draw != "prior"
  attends = conditioning.uses_cross(config.model.conditioning)
  memory = setup.load_memory(workdir / "memory", mesh, None, rows=reads_bank)
  step, params = load_params(config, workdir, mesh, asked)
  bank = None
  if reads_bank:
    # On the host: on devices, a process may have only some of the rows.
    rows = bank_lib.decode(memory.bank)
    bank = host_bank.HostBank(
      rows,
      None,
      bank_files.origin_of(memory.info),
      functools.partial(_run_images, workdir, memory),
    )
    if attends:
      placed = bank_sharding.place(memory.bank, mesh, config.bank.placement)
      unit = setup.lookup_bank(config, placed)
      memory = dataclasses.replace(memory, unit=unit)
  return SampleSource(
    network=f"step_{step:07d}_{config.sample.weights}",
    sampler=make_sampler(config, memory, mesh),
    weights=make_weights(config, memory, params),
    bank=bank,
    info={"step": step, "weights": config.sample.weights},
    step=asked,
  )


def _run_images(
  workdir: paths.Path, memory: setup.RunMemory
) -> row_images.RowImages | None:
  """The images of a run's bank."""
  stored = bank_files.of_run(workdir / "memory", memory.bank, memory.info)
  return row_images.find(workdir, stored)


def load_params(
  config: sections.Config,
  workdir: paths.Path,
  mesh: jax.sharding.Mesh,
  step: int | None = None,
) -> tuple[int, Any]:
  """Loads the parameters to sample with, and nothing else of the checkpoint.

  Returns:
    (step, parameters).

  Raises:
    ValueError: If the run has no checkpoint yet, or none of that step.
  """
  try:
    return checkpoint.load_part(
      workdir / "checkpoints",
      config.sample.weights,
      lambda shapes: sharding.state_shardings(shapes, mesh),
      step,
    )
  except ValueError as error:
    where = f"--workdir={workdir}: " if step is None else ""
    raise ValueError(f"{where}{error}") from None


def make_sampler(
  config: sections.Config,
  memory: setup.RunMemory,
  mesh: jax.sharding.Mesh,
) -> sampler_lib.Sampler:
  """The sampler of a run's network."""
  return sampler_lib.Sampler(
    network=setup.network(config, memory),
    latent_shape=memory.latent_shape,
    mesh=mesh,
    retrieve=setup.make_retrieve(config, memory.unit),
    **sampler_settings(config),
  )


def sampler_settings(config: sections.Config) -> dict[str, Any]:
  """The fields of a `Sampler` that the config alone decides."""
  return {
    "config": config.sampler,
    "device_batch": config.sample.device_batch,
    "dtype": config.sample.dtype,
    "precision": config.sample.precision,
  }


def make_weights(
  config: sections.Config, memory: setup.RunMemory, params: Any
) -> sampler_lib.SampleWeights:
  """All that a run samples with; reads the decoder."""
  return sampler_lib.SampleWeights(
    params=params,
    tokenizer=load_encoders.load_decoder(config),
    stats=memory.stats,
    bank=memory.unit,
  )


def _from_converted(
  config: sections.Config, mesh: jax.sharding.Mesh
) -> SampleSource:
  """The converted weights that `sample.network` names."""
  key, path = "sample.network", config.sample.network
  params, metadata = weights_lib.load_configured(key, path, tuple(dit.FAMILIES))
  model, info = metadata["model"], weights_lib.origin(metadata)
  _check_model(config, model)
  # Only training uses the projectors.
  params = {k: v for k, v in params.items() if not k.startswith("projector")}
  side, channels = model["grid"] * model["patch"], model["channels"]
  tokenizer = load_encoders.load_decoder(config)
  stats = load_encoders.load_stats(config, tokenizer, channels)
  bank = None
  if not config.sample.bank and "bank" in metadata["trees"]:
    bank, _ = host_bank.read(f"config.{key}", path)
  name = pathlib.Path(path).name
  return SampleSource(
    network=f"{name}_{info['weights']}" if info["weights"] else name,
    sampler=sampler_lib.Sampler(
      network=dit.build(
        config.model,
        channels=channels,
        snippet_dim=model["snippet_dim"],
        token_dim=0,
      ),
      latent_shape=(side, side, channels),
      mesh=mesh,
      first_release=dit.is_release(metadata),
      **sampler_settings(config),
    ),
    weights=sampler_lib.SampleWeights(params, tokenizer, stats),
    bank=bank,
    info=info,
  )


def _check_model(config: sections.Config, stored: dict[str, Any]) -> None:
  """Refuses a network that is not the config's; lists the keys that differ."""
  path = config.sample.network
  differing = dit.differing_keys(config.model, stored)
  if not differing:
    return
  if stored["conditioning"] != config.model.conditioning:
    differing += (
      "\nTo give it the config's conditioning, train on from it:"
      f" --mode=train --config.train.init_from={path}"
    )
  raise ValueError(
    f"config.sample.network={path!r} holds another network than"
    f" config.model:\n{differing}"
  )
