"""`--mode=compile`: does a config fit a machine that is not here?

Compiles the real training and sampling steps from shapes alone, so neither
data nor weights are needed, nor the machine.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gmem_jax import rngs
from gmem_jax.aot import examine, topology
from gmem_jax.bank import bank as bank_lib, sharding as bank_sharding
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.models import attention, conditioning
from gmem_jax.models.encoders import patch_pca, protocols, vae
from gmem_jax.parallel import sharding
from gmem_jax.sample import sampler as sampler_lib, source as source_lib
from gmem_jax.train import loop, setup

# Rows of the published bank: the training images of ImageNet.
PUBLISHED_ROWS = 1_281_167
# Bytes from which an array should not be whole on every device.
LARGE = 8 * 2**20
# Width of a feature and of a token, of both feature encoders.
FEATURE_WIDTH = 768


def compile_mode(
  config: sections.Config,
  name: str,
  bank_rows: int = PUBLISHED_ROWS,
  only: str | None = None,
) -> tuple[examine.Needs, ...]:
  """Compiles a config's programs for a machine and prints what they need.

  Args:
    config: Its mesh is laid over the chips of the machine.
    name: The machine; see `topology.HELP`.
    bank_rows: Rows of the bank.
    only: Compiles the training step or the sampler alone: for large networks
      each takes minutes.

  Returns:
    What each program needs, the training step first.

  Raises:
    ValueError: If the config does not fit, with what to change.
    ModuleNotFoundError: If the compiler is not installed.
  """
  machine = topology.describe(name)
  mesh = sharding.make_mesh(config.mesh, devices=machine.devices)
  sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  print(
    f"{name}: {machine.count} chips, mesh {sizes};"
    f" {machine.compiler or 'no compiler'}, jax {jax.__version__}",
    flush=True,
  )
  config = _as_there(config, machine)
  results = []
  makers = {"train": training, "sample": sampling}
  for make in [makers[only]] if only else makers.values():
    program = make(config, mesh, bank_rows, machine.chip.memory)
    try:
      needs = examine.examine(program, machine)
    except examine.TooBigError as error:
      hints = "\n".join(f"  {hint}" for hint in advice(config, mesh, program))
      raise ValueError(f"{error}. To change:\n{hints}") from None
    # At once, as the next program may take minutes to compile.
    print("\n" + examine.describe(needs, machine), flush=True)
    results.append(needs)
  # Lowering alone does not tell the peak memory.
  if machine.compiler:
    part = {None: "", "train": "'s training step", "sample": "'s sampler"}
    print(f"\n{name} fits this config{part[only]}.")
  return tuple(results)


def _as_there(
  config: sections.Config, machine: topology.Topology
) -> sections.Config:
  """The config with the attention that "auto" would choose on the machine."""
  model = config.model
  if model.attention != "auto" or machine.platform != "cuda":
    return config
  if attention.cudnn_obstacle(model.dtype, model.width // model.heads):
    return config
  if not machine.has_cudnn:
    print(
      "training step with XLA's attention; the machine would take cuDNN's, but"
      " nvidia-cudnn-cu12 is not installed here"
    )
    return config
  return dataclasses.replace(
    config, model=dataclasses.replace(model, attention="cudnn")
  )


def training(
  config: sections.Config,
  mesh: jax.sharding.Mesh,
  bank_rows: int,
  device_memory: int | None = None,
) -> examine.Program:
  """The training step, on shapes.

  The bytes of a device, if known, decide where the bank goes if
  `bank.placement` is "auto".

  Raises:
    ValueError: If the batch or its parts do not divide over the mesh.
  """
  size, k = config.train.batch_size, config.train.steps_per_dispatch
  setup.check_batch(config, mesh)
  memory = memory_shapes(config, bank_rows, mesh, device_memory)
  shapes = jax.eval_shape(setup.make_init(config, memory))
  shardings = sharding.state_shardings(shapes, mesh)
  state = sharding.abstract(shapes, shardings)
  batch = _batch(config, memory, mesh)
  step = loop.jit_step(
    config,
    setup.network(config, memory),
    memory.stats,
    mesh,
    shardings,
    memory.bank,
    setup.make_retrieve(config, memory.bank),
  )
  searched = conditioning.uses_cross(config.model.conditioning)
  steps = "training step" if k == 1 else f"{k} training steps"
  return examine.Program(
    f"{steps}, batch {size}",
    step,
    # No encoder: the batch has latents, not pixels.
    (state, batch, memory.bank, None),
    {
      "parameters": state.params,
      "moving average": state.ema,
      "optimizer": state.opt_state,
      "batch": batch,
      "searched bank" if searched else "bank": memory.bank,
    },
  )


def _batch(
  config: sections.Config, memory: setup.RunMemory, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """The fields of a dispatch's batch."""
  where = sharding.batch_sharding(mesh, steps_axis=True)
  leading = (config.train.steps_per_dispatch, config.train.batch_size)

  def field(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=where)

  batch = {
    "latent": field(jnp.float32, *memory.latent_shape),
    "row": field(jnp.int32),
  }
  if memory.token_dim:
    side = memory.latent_shape[0] // config.model.patch
    batch["tokens"] = field(jnp.float32, side**2, memory.token_dim)
  return batch


def sampling(
  config: sections.Config,
  mesh: jax.sharding.Mesh,
  bank_rows: int,
  device_memory: int | None = None,
) -> examine.Program:
  """The sampler, from noise to uint8 images, on shapes; see `training`."""
  memory = memory_shapes(config, bank_rows, mesh, device_memory)
  # The projector is left out: only training uses it.
  memory = dataclasses.replace(memory, token_dim=0)
  sampler = source_lib.make_sampler(config, memory, mesh)
  weights = jax.eval_shape(
    lambda: sampler_lib.SampleWeights(
      params=setup.make_init(config, memory)().params,
      tokenizer=load_encoders.decoder(
        _tokenizer(config), config.sample.decode_dtype
      ),
      stats=memory.stats,
    )
  )
  everywhere = sharding.replicated(mesh)
  weights = sharding.abstract(
    weights, jax.tree.map(lambda _: everywhere, weights)
  )
  weights = dataclasses.replace(weights, bank=memory.unit)
  count, batch = sampler.call_size, sharding.batch_sharding(mesh)
  numbers = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=batch)
  features = jax.ShapeDtypeStruct(
    (count, FEATURE_WIDTH), jnp.float32, sharding=batch
  )
  root = sharding.abstract(jax.eval_shape(lambda: rngs.root(0)), everywhere)
  parts = {"parameters": weights.params, "tokenizer": weights.tokenizer}
  if memory.unit is not None:
    parts["searched bank"] = memory.unit
  return examine.Program(
    f"sampler, {count} images",
    sampler.jitted,
    (weights, root, numbers, features, numbers),
    parts,
  )


def memory_shapes(
  config: sections.Config,
  bank_rows: int,
  mesh: jax.sharding.Mesh,
  device_memory: int | None = None,
) -> setup.RunMemory:
  """A run's memory whose bank is shapes alone; see `training`."""
  side = config.encoder.image_size
  if config.encoder.tokenizer == "identity":
    shape = (side, side, _channels(config))
  elif config.encoder.tokenizer == "patch_pca":
    side //= config.encoder.tokenizer_patch
    shape = (side, side, config.encoder.tokenizer_channels)
  else:
    network = vae.VARIANTS[config.encoder.tokenizer]
    side //= network.downsampling
    shape = (side, side, network.latent_channels)
  bank = _bank_shapes(config, bank_rows, mesh, device_memory)
  return setup.RunMemory(
    bank=bank,
    info=bank_lib.BankInfo(bank_rows, FEATURE_WIDTH, "", "", "", ""),
    stats=protocols.LatentStats(jnp.zeros(shape[2]), jnp.ones(shape[2])),
    latent_shape=shape,
    token_dim=FEATURE_WIDTH if config.loss.projection_weight else 0,
    unit=bank if conditioning.uses_cross(config.model.conditioning) else None,
  )


def _bank_shapes(
  config: sections.Config,
  rows: int,
  mesh: jax.sharding.Mesh,
  device_memory: int | None,
) -> bank_lib.MemoryBank:
  """The shapes of a bank as a run stores and places it."""
  vector = jax.ShapeDtypeStruct((rows,), jnp.float32)
  scaled = config.bank.storage == "int8"
  bank = bank_lib.MemoryBank(
    jax.ShapeDtypeStruct((rows, FEATURE_WIDTH), jnp.dtype(config.bank.storage)),
    scales=vector if scaled else None,
    residuals=vector if scaled else None,
  )
  where = bank_sharding.choose(bank, mesh, config.bank.placement, device_memory)
  # The same padding as of `bank.sharding.place` and `setup.lookup_bank`, which
  # need arrays.
  multiple = 1 if where.is_fully_replicated else mesh.size
  if conditioning.uses_cross(config.model.conditioning):
    multiple *= 8
  padding = -rows % multiple

  def padded(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    shape = (rows + padding, *x.shape[1:])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=where)

  return dataclasses.replace(jax.tree.map(padded, bank), padding=padding)


def _channels(config: sections.Config) -> int:
  """Channels of the images; digits are grey."""
  return 1 if config.data.source == "digits" else 3


def _tokenizer(config: sections.Config) -> protocols.Tokenizer:
  """The tokenizer, with fresh weights: only their shapes are used."""
  name, side = config.encoder.tokenizer, config.encoder.image_size
  if name == "identity":
    return protocols.IdentityTokenizer()
  if name == "patch_pca":
    patch = config.encoder.tokenizer_patch
    mean = jnp.zeros(patch**2 * _channels(config))
    basis = jnp.zeros((len(mean), config.encoder.tokenizer_channels))
    return patch_pca.PatchPCATokenizer(name, patch, mean, basis)
  network = vae.VARIANTS[name]
  images = jnp.zeros((1, side, side, 3))
  variables = network.init(rngs.key(config.seed, "init"), images)
  return vae.VAETokenizer(
    name=name, network=network, params=variables["params"]
  )


def advice(
  config: sections.Config, mesh: jax.sharding.Mesh, program: examine.Program
) -> list[str]:
  """Suggestions to reduce a program's memory, cheapest first."""
  if program.name.startswith("sampler"):
    return [
      f"--config.sample.device_batch={config.sample.device_batch}: make it"
      " smaller",
      f"--config.sample.dtype={config.sample.dtype!r}: 'bfloat16' halves the"
      " activations",
    ]
  hints = []
  whole = examine.replicated(program.parts["parameters"], LARGE)
  if whole and mesh.shape["fsdp"] == 1:
    hints.append(
      "--config.mesh.fsdp=16 (with mesh.data=-1): parameters, average and"
      " optimizer are whole on every chip now"
    )
  if config.bank.placement == "replicated":
    hints.append(
      "--config.bank.placement=auto: splits the rows of a bank that takes more"
      " than an eighth of a chip's memory"
    )
  if config.model.dtype != "bfloat16":
    hints.append("--config.model.dtype=bfloat16: halves the activations")
  if config.model.remat != "full":
    more = "dots" if config.model.remat == "none" else "full"
    hints.append(
      f"--config.model.remat={more}: computes activations again instead of"
      " keeping them"
    )
  hints.append(
    f"--config.train.accumulation={2 * config.train.accumulation}: takes the"
    " batch in more parts, one after the other"
  )
  hints.append(
    f"--config.train.batch_size={config.train.batch_size}: make it smaller, or"
    " take more chips"
  )
  return hints
