"""`--mode=compile`: does a config fit a machine that is not here?

Compiles the real training and sampling steps from shapes alone, so neither
data nor weights are needed, nor the machine.
"""

import dataclasses

import jax

from gmem_jax.aot import examine, topology
from gmem_jax.commands import programs
from gmem_jax.config import sections
from gmem_jax.models import attention
from gmem_jax.parallel import sharding

# Rows of the published bank: the training images of ImageNet.
PUBLISHED_ROWS = 1_281_167
# Bytes from which an array should not be whole on every device.
LARGE = 8 * 2**20


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
  makers = {"train": programs.training, "sample": programs.sampling}
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
