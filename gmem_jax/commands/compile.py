"""`--mode=compile`: does a config fit a machine that is not here?

Compiles the real training and sampling steps from shapes alone: neither data
nor weights need to be here, nor the machine.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gmem_jax import rngs
from gmem_jax.aot import examine, topology
from gmem_jax.commands import abstract
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.models import transformer
from gmem_jax.models.encoders import protocols, vae
from gmem_jax.parallel import sharding
from gmem_jax.sample import sampler as sampler_lib
from gmem_jax.train import (
  loop,
  optimizer as optimizer_lib,
  setup,
  state as train_state,
  step as train_step,
)

# Rows of the published bank: the training images of ImageNet.
PUBLISHED_ROWS = 1_281_167
# Bytes from which an array should not be whole on every device.
LARGE = 8 * 2**20


def compile_mode(
  config: sections.Config, name: str, bank_rows: int = PUBLISHED_ROWS
) -> tuple[examine.Needs, ...]:
  """Compiles a config's programs for a machine and prints what they need.

  Args:
    config: The run.
    name: The machine; see `topology.HELP`.
    bank_rows: Rows of the bank.

  Returns:
    What the training step and the sampler need.

  Raises:
    ValueError: If the config does not fit, with what to change.
    ModuleNotFoundError: If the compiler is not installed.
  """
  machine = topology.describe(name)
  mesh = sharding.make_mesh(config.mesh, devices=machine.devices)
  sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  print(
    f"{name}: {machine.count} chips, mesh {sizes};"
    f" {machine.compiler or 'no compiler'}, jax {jax.__version__}"
  )
  found = []
  for make in (training, sampling):
    program = make(config, mesh, bank_rows, machine.chip.memory)
    try:
      needs = examine.examine(program, machine)
    except examine.TooBigError as error:
      hints = "\n".join(f"  {hint}" for hint in advice(config, mesh, program))
      raise ValueError(f"{error}. To change:\n{hints}") from None
    print("\n" + examine.describe(needs, machine), flush=True)
    found.append(needs)
  if machine.compiler:
    print(f"\n{name} fits this config.")
  return tuple(found)


def training(
  config: sections.Config,
  mesh: jax.sharding.Mesh,
  bank_rows: int,
  device_memory: int | None = None,
) -> examine.Program:
  """The training step.

  Args:
    config: The run.
    mesh: The devices.
    bank_rows: Rows of the bank.
    device_memory: Bytes of a device, which decide where the bank goes if
      `bank.placement` is "auto"; None if unknown.

  Raises:
    ValueError: If the batch does not divide.
  """
  ways = sharding.batch_ways(mesh)
  size, k = config.train.batch_size, config.train.steps_per_dispatch
  if size % ways:
    raise ValueError(
      f"config.train.batch_size={size} is not a multiple of the mesh's data x"
      f" fsdp = {ways}"
    )
  memory = abstract.memory(config, bank_rows, mesh, device_memory)
  network = setup.network(config, memory)
  shapes = jax.eval_shape(
    train_state.make_init(
      lambda: _init(config, network, memory),
      optimizer_lib.make_optimizer(config.optim),
    )
  )
  shardings = sharding.state_shardings(shapes, mesh)
  state = sharding.abstract(shapes, shardings)
  where = sharding.batch_sharding(mesh, steps_axis=True)

  def field(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((k, size, *shape), dtype, sharding=where)

  batch = {
    "latent": field(jnp.float32, *memory.latent_shape),
    "row": field(jnp.int32),
  }
  if network.token_dim:
    side = memory.latent_shape[0] // config.model.patch
    batch["tokens"] = field(jnp.float32, side**2, network.token_dim)
  searched = transformer.uses_cross(network.conditioning)
  steps = "training step" if k == 1 else f"{k} training steps"
  return examine.Program(
    f"{steps}, batch {size}",
    loop.jit_step(
      config,
      network,
      memory.stats,
      mesh,
      shardings,
      memory.bank,
    ),
    (state, batch, memory.bank, None),
    {
      "parameters": state.params,
      "moving average": state.ema,
      "optimizer": state.opt_state,
      "batch": batch,
      "searched bank" if searched else "bank": memory.bank,
    },
  )


def sampling(
  config: sections.Config,
  mesh: jax.sharding.Mesh,
  bank_rows: int,
  device_memory: int | None = None,
) -> examine.Program:
  """The sampler, from noise to bytes.

  Args:
    config: The run.
    mesh: The devices.
    bank_rows: Rows of the bank.
    device_memory: See `training`.
  """
  memory = abstract.memory(config, bank_rows, mesh, device_memory)
  network = setup.network(config, memory).clone(token_dim=0)
  weights = jax.eval_shape(
    lambda: sampler_lib.SampleWeights(
      params=_init(config, network, memory),
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
  retrieve = setup.make_retrieve(config, memory.bank)
  if retrieve is not None:
    weights = dataclasses.replace(weights, bank=memory.bank)
  sampler = sampler_lib.Sampler(
    network,
    config.sampler,
    memory.latent_shape,
    mesh,
    config.sample.seed,
    config.sample.device_batch,
    retrieve,
  )
  count = sampler.call_size
  batch = sharding.batch_sharding(mesh)
  return examine.Program(
    f"sampler, {count} images",
    sampler.jitted,
    (
      weights,
      jax.ShapeDtypeStruct((count,), jnp.int32, sharding=batch),
      jax.ShapeDtypeStruct(
        (count, abstract.FEATURE_WIDTH), jnp.float32, sharding=batch
      ),
      jax.ShapeDtypeStruct((count,), jnp.int32, sharding=batch),
    ),
    {"parameters": weights.params, "tokenizer": weights.tokenizer}
    | ({"searched bank": weights.bank} if retrieve else {}),
  )


def advice(
  config: sections.Config, mesh: jax.sharding.Mesh, program: examine.Program
) -> list[str]:
  """What to change where a program is too big, dearest last.

  Args:
    config: The run.
    mesh: Its devices.
    program: The program.
  """
  if program.name.startswith("sampler"):
    return [
      f"--config.sample.device_batch={config.sample.device_batch}: make it"
      " smaller",
      f"--config.model.dtype={config.model.dtype!r}: 'bfloat16' halves the"
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


def _init(
  config: sections.Config,
  network: transformer.FlowTransformer,
  memory: setup.Memory,
) -> Any:
  """The network's parameters."""
  width = None if network.conditioning == "none" else memory.bank.width
  inputs = train_step.example_inputs(
    memory.latent_shape, width, network.conditioning
  )
  return network.init(rngs.key(config.seed, "init"), *inputs)["params"]


def _tokenizer(config: sections.Config) -> protocols.Tokenizer:
  """The tokenizer, with weights of no meaning."""
  name, side = config.encoder.tokenizer, config.encoder.image_size
  if name == "identity":
    return protocols.IdentityTokenizer()
  network = vae.VARIANTS[name]
  images = jnp.zeros((1, side, side, 3))
  variables = network.init(rngs.key(config.seed, "init"), images)
  return vae.VAETokenizer(
    name=name, network=network, params=variables["params"]
  )
