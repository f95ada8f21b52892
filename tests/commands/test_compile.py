"""--mode=compile: what is compiled, what is said of it, and what if not."""

import importlib.util
import logging
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gmem_jax.aot import chips, examine, hlo, topology
from gmem_jax.commands import compile as compile_command, programs
from gmem_jax.parallel import sharding
from tests import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion")
tpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is not installed (extra tpu-aot)",
)
no_cuda = pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda12_plugin") is not None,
  reason="jax-cuda12-plugin is installed",
)


def make_mesh(**sizes):
  return sharding.make_mesh(
    sharding.MeshConfig(**({"data": 1, "fsdp": 1, "tensor": 1} | sizes))
  )


@pytest.mark.multidevice
def test_fsdp_sends_parameters_not_activations():
  """What is sent does not depend on the batch."""
  mesh = make_mesh(fsdp=4)

  def compile_step(batch):
    config = tiny.make_config(
      train__batch_size=batch,
      train__steps_per_dispatch=1,
      model__width=64,
      model__depth=1,
      model__projector_depth=1,
      model__scan_layers=True,
    )
    program = programs.training(config, mesh, bank_rows=100)
    compiled = program.jitted.lower(*program.arguments).compile()
    found = hlo.collectives(compiled.as_text(), 4)
    return program, {c.kind: c.sent for c in found}

  program, few = compile_step(16)
  _, many = compile_step(64)
  held = sum(
    x.size * x.dtype.itemsize
    for x in jax.tree.leaves(program.parts["parameters"])
  )
  assert sum(few.values()) > held  # gathered twice, summed once
  assert many == pytest.approx(few, rel=0.05)


@pytest.mark.multidevice
def test_parts_of_the_batch_that_do_not_divide_are_refused():
  """As training would: this machine may be rented for it."""
  config = tiny.make_config(train__batch_size=16, train__accumulation=8)
  with pytest.raises(ValueError, match=r"config\.train\.accumulation=8"):
    programs.training(config, make_mesh(data=4), bank_rows=100)


@pytest.mark.multidevice
def test_training_takes_shapes_of_the_config():
  config = tiny.make_config(
    train__batch_size=32,
    model__width=64,
    loss__projection_weight=0.5,
    data__tokens="bf16",
  )
  program = programs.training(config, make_mesh(fsdp=4), bank_rows=1000)
  state, batch, bank, _ = program.arguments
  assert program.name == "2 training steps, batch 32"
  assert batch["latent"].shape == (2, 32, 8, 8, 1)
  assert batch["tokens"].shape[:2] == (2, 32)
  assert batch["latent"].sharding.spec == P(None, ("data", "fsdp"))
  assert bank.rows.shape == (1000, 768)
  kernel = state.params["blocks"]["attn"]["qkv"]["kernel"]
  assert kernel.sharding.spec == P(None, "fsdp", "tensor")
  assert state.ema["blocks"]["attn"]["qkv"]["kernel"].sharding == (
    kernel.sharding
  )
  parts = {k: examine.bytes_per_device(v) for k, v in program.parts.items()}
  assert parts["bank"] == 1000 * 768 * 4
  assert parts["optimizer"] > 2 * parts["parameters"]
  assert parts["moving average"] == parts["parameters"]


@pytest.mark.multidevice
@pytest.mark.parametrize(
  ("storage", "placement", "memory", "parts", "bytes_a_row"),
  [
    ("float32", "auto", None, 1, 4 * 768),
    ("float32", "auto", 10_000_000, 4, 4 * 768),
    ("float32", "replicated", 10_000_000, 1, 4 * 768),
    ("bfloat16", "sharded", None, 4, 2 * 768),
    ("int8", "sharded", None, 4, 768 + 8),
    ("int8", "auto", 10_000_000, 1, 768 + 8),
  ],
)
def test_the_bank_is_stored_and_placed_as_configured(
  storage, placement, memory, parts, bytes_a_row
):
  """As in a run: beyond an eighth of a device's memory it is split."""
  config = tiny.make_config(bank__storage=storage, bank__placement=placement)
  mesh = make_mesh(data=2, fsdp=2)
  program = programs.training(config, mesh, 1001, memory)
  found = examine.bytes_per_device(program.parts["bank"])
  assert found == -(-1001 // parts) * bytes_a_row
  assert program.arguments[2].size == 1001


@pytest.mark.parametrize(
  ("tokenizer", "size", "shape"),
  [("va_vae", 256, (16, 16, 32)), ("sd_vae", 512, (64, 64, 4))],
)
def test_latents_follow_from_tokenizer_and_size(tokenizer, size, shape):
  config = tiny.make_config(
    encoder__tokenizer=tokenizer,
    encoder__image_size=size,
    train__steps_per_dispatch=1,
  )
  program = programs.training(
    config, make_mesh(data=4), bank_rows=compile_command.PUBLISHED_ROWS
  )
  assert program.arguments[1]["latent"].shape == (1, 16, *shape)


def test_batch_that_does_not_divide():
  with pytest.raises(ValueError, match=r"config\.train\.batch_size=18"):
    programs.training(
      tiny.make_config(train__batch_size=18), make_mesh(data=4), 10
    )


@no_cuda
@pytest.mark.multidevice
def test_a_gpu_node_without_a_compiler_is_lowered(capsys, caplog):
  caplog.set_level(logging.INFO, logger="gmem_jax")
  config = tiny.make_config(mesh__data=-1, train__steps_per_dispatch=1)
  step, sampler = compile_command.compile_mode(config, "h100:4", bank_rows=100)
  out = capsys.readouterr().out
  assert "h100:4: 4 chips, mesh data 4, fsdp 1, tensor 1; no compiler" in out
  assert "lowered, not compiled, in" in out
  assert "fits" not in out
  for needs in (step, sampler):
    assert (needs.peak, needs.collectives, needs.roofline) == (None,) * 3
    assert needs.flops > 0
  for program in ("training step, batch 16", "sampler, 32 images"):
    for phase in ("tracing", "lowering"):
      assert re.search(rf"{program}: {phase}, 00:\d\d", caplog.text)
  assert "compiling" not in caplog.text
  # Three times the forward pass's products, at least.
  assert step.flops > 3 * 2 * 16 * 16 * 2 * 12 * 32**2


@no_cuda
@pytest.mark.multidevice
@pytest.mark.parametrize(
  ("only", "program"), [("train", "2 training steps"), ("sample", "sampler")]
)
def test_one_program_alone(only, program):
  config = tiny.make_config(mesh__data=-1)
  (needs,) = compile_command.compile_mode(config, "h100:4", 100, only)
  assert needs.name.startswith(program)


@pytest.mark.parametrize(
  ("message", "need", "has"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required"
      " for HLO temporaries (17.57G) exceeds available HBM (15.75G).",
      "17.57 GiB",
      "15.75 GiB",
    ),
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory"
      " in memory space hbm. Used 950.5M of 512.00M hbm. Exceeded hbm capacity",
      "950.50 MiB",
      "512.00 MiB",
    ),
  ],
)
def test_out_of_memory_is_one_line(message, need, has):
  error = examine.explained("training step", message, held=2**30)
  assert isinstance(error, examine.TooBigError)
  assert str(error) == (
    f"training step does not fit: it needs {need} of a chip that has {has}; its"
    " arguments alone are 1.00 GiB"
  )


def test_other_errors_of_the_compiler():
  error = examine.explained("sampler", "RESOURCE_EXHAUSTED: else\nx", held=1)
  assert str(error) == "sampler does not fit: RESOURCE_EXHAUSTED: else"
  error = examine.explained("sampler", "INTERNAL: broken\nmore", held=1)
  assert not isinstance(error, examine.TooBigError)
  assert str(error) == "sampler does not compile: INTERNAL: broken"


@no_cuda
@pytest.mark.multidevice
def test_too_big_without_a_compiler(monkeypatch):
  small = chips.Chip("h100", 1.0, 2**20, 1.0, 1.0, None, "")
  monkeypatch.setitem(chips.CHIPS, "h100", small)
  config = tiny.make_config(mesh__data=-1)
  with pytest.raises(ValueError, match=r"(?s)does not fit.*\n.*batch_size=16"):
    compile_command.compile_mode(config, "h100:4", bank_rows=10_000)


def fake_program(**parameters):
  return examine.Program("training step", None, (), {"parameters": parameters})


def array(mesh, spec, size=2**22):
  return jax.ShapeDtypeStruct(
    (size,), jnp.float32, sharding=NamedSharding(mesh, spec)
  )


@pytest.mark.multidevice
def test_advice_follows_the_config():
  config = tiny.make_config(model__remat="none")
  mesh = make_mesh(data=4)
  program = fake_program(kernel=array(mesh, P()))
  hints = compile_command.advice(config, mesh, program)
  assert hints[0].startswith("--config.mesh.fsdp=16")
  assert "--config.model.dtype=bfloat16" in hints[1]
  assert "--config.model.remat=dots" in hints[2]
  assert hints[-1].startswith("--config.train.batch_size=16")

  mesh = make_mesh(fsdp=4)
  config = tiny.make_config(model__remat="dots", model__dtype="bfloat16")
  program = fake_program(a=array(mesh, P("fsdp")), small=array(mesh, P(), 4))
  hints = compile_command.advice(config, mesh, program)
  assert hints[0].startswith("--config.model.remat=full")
  assert hints[1].startswith("--config.train.accumulation=2")


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:2", "h100", "h100:2x"])
def test_unknown_machines(name):
  with pytest.raises(ValueError, match=r"must be v4:XxYxZ, v5e:XxY"):
    topology.describe(name)


def test_missing_libtpu_names_the_extra(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "version", missing)
  with pytest.raises(ModuleNotFoundError, match=r"gmem_jax\[tpu-aot\]"):
    topology.describe("v5e:2x2")


def command(*extra, **changes):
  done = subprocess.run(
    [
      sys.executable, "-m", "gmem_jax.main",
      f"--config={tiny.ROOT}/configs/digits.py", "--mode=compile",
      *tiny.flags(**changes), *extra,
    ],
    cwd=tiny.ROOT, capture_output=True, text=True, timeout=400, check=False,
    # libtpu reads them too, and ends where it does not know one.
    env=os.environ | {"XLA_FLAGS": ""},
  )  # fmt: skip
  # jax-cuda12-plugin, where it is installed, misses a driver that need not be.
  noise = re.compile(r"WARNING: All log messages before absl|[IW]\d{4} .*cuda")
  lines = done.stderr.splitlines(keepends=True)
  errors = "".join(line for line in lines if not noise.match(line))
  return done.returncode, done.stdout, errors


@pytest.mark.process
def test_compile_needs_a_topology():
  status, _, errors = command()
  assert status == 2
  assert errors == "gmem_jax: --topology is needed; see --help\n"


@tpu
@pytest.mark.tpu
@pytest.mark.process
def test_a_small_pod(tmp_path):
  status, out, errors = command(
    "--topology=v5e:2x2",
    "--bank_rows=1437",
    mesh__data=2,
    mesh__fsdp=2,
    model__width=64,
    train__steps_per_dispatch=1,
  )
  assert status == 0, errors
  assert re.fullmatch(r"(\d\d:\d\d:\d\d  .*, \d\d:\d\d so far\n){6}", errors)
  assert "v5e:2x2: 4 chips, mesh data 2, fsdp 2, tensor 1; libtpu" in out
  step, sampler = out.split("\n\n")[1:3]
  for kind in ("all-gather", "all-reduce", "peak memory", "ESTIMATE"):
    assert kind in step
  assert "which has 16.00 GiB" in step
  assert "sampler, 32 images" in sampler
  assert out.endswith("v5e:2x2 fits this config.\n")


@tpu
@pytest.mark.tpu
@pytest.mark.process
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
def test_only_gradients_cross_from_slice_to_slice(chip):
  status, out, errors = command(
    f"--topology={chip}:2x2x2slices",
    "--bank_rows=1437",
    "--compile_only=train",
    mesh__data=-1,
    mesh__fsdp=4,
    model__width=64,
    train__steps_per_dispatch=1,
  )
  assert status == 0, errors
  assert "8 chips, mesh data 2, fsdp 4, tensor 1" in out
  mebibytes = dict(re.findall(r"^  (\w.*?)  +([\d.]+) MiB", out, re.MULTILINE))
  crossing = [name for name in mebibytes if name.endswith("between slices")]
  assert crossing == ["all-reduce between slices"]
  # A chip has as much of the gradients as of the parameters; some are padded.
  parameters = float(mebibytes["parameters"])
  assert parameters / 2 < float(mebibytes[crossing[0]]) < 1.5 * parameters
  assert re.search(r"ESTIMATE .*, between slices [\d.]+\n", out)


@tpu
@pytest.mark.tpu
@pytest.mark.process
def test_slices_that_the_mesh_does_not_keep_apart():
  status, _, errors = command(
    "--topology=v5e:2x2x2slices", mesh__data=1, mesh__fsdp=-1
  )
  assert status == 2
  assert "the devices are 2 slices" in errors
  assert "set config.mesh.data to a multiple of 2" in errors


@tpu
@pytest.mark.tpu
@pytest.mark.process
def test_a_pod_that_is_too_small():
  status, _, errors = command(
    "--topology=v5e:2x2",
    mesh__data=-1,
    train__batch_size=2**20,
    model__scan_layers=True,
  )
  assert status == 2
  first, *hints = errors[errors.index("gmem_jax: ") :].splitlines()
  assert first.startswith("gmem_jax: 2 training steps, batch 1048576 does not")
  assert first.endswith("To change:")
  assert "of a chip that has 15.75 GiB" in first
  assert hints[-1].startswith("  --config.train.batch_size=1048576")
