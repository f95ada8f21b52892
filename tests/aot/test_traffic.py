"""Bytes that a program moves, by hand and of a compiled one."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from gmem_jax.aot import topology, traffic
from gmem_jax.models import attention

# In the forms that XLA writes for TPUs and GPUs, cut to what is read.
TEXT = """HloModule jit_f, is_scheduled=true

%nested (a: f32[8,4]) -> f32[1,4] {
  %a = f32[8,4]{1,0} parameter(0)
  ROOT %part = f32[1,4]{1,0} dynamic-slice(%a, %i), dynamic_slice_sizes={1,4}
}

%sliced (p: f32[8,4], q: f32[4]) -> f32[1,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %row = f32[1,4]{1,0} fusion(%p), kind=kLoop, calls=%nested
  %view = f32[1,4]{1,0} bitcast(%q)
  ROOT %sum = f32[1,4]{1,0} add(%row, %view)
}

%in_place (p: f32[8,4], q: f32[1,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[1,4]{1,0} parameter(1)
  ROOT %new = f32[8,4]{1,0} dynamic-update-slice(%p, %q, %i)
}

%body (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%t), index=1
  %row = f32[1,4]{1,0} fusion(%x, %w), kind=kLoop, calls=%sliced
  %w = f32[4]{0} constant(0)
  %next = f32[8,4]{1,0} fusion(%x, %row), kind=kLoop, calls=%in_place
  ROOT %r = (s32[], f32[8,4]{1,0}) tuple(%i, %next)
}

ENTRY %main (p: f32[8,4], k: bf16[4,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %k = bf16[4,4]{1,0} parameter(1)
  %start = (s32[], f32[8,4]{1,0}) tuple(%c, %p)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  %y = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %near = f32[8,4]{1,0:T(8,128)S(1)} copy(%y)
  ROOT %dot = (f32[8,4]{1,0}, s8[1000]{0}) custom-call(%near, %k), custom_call_target="__cublas$lt$matmul"
}
"""  # noqa: E501


def test_moved_bytes_by_hand():
  # Ten times: a row of x and w are read and a row is written; then that row is
  # read, and one of x written.
  loop = 10 * ((16 + 16 + 16) + (16 + 16))
  copy = 128  # Its result stays on the chip.
  product = 4 * 4 * 2 + 128  # So one operand, the result, and no scratch.
  assert traffic.moved(TEXT) == loop + copy + product


def test_moved_bytes_of_a_compiled_loop():
  def f(x):
    return jax.lax.fori_loop(0, 7, lambda _, x: jnp.sin(x @ x), x)

  x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
  text = jax.jit(f).lower(x).compile().as_text()
  # A product reads x, which is both operands, and writes; the sine too.
  assert 7 * 4 * 2**20 <= traffic.moved(text) <= 7 * 6 * 2**20


@pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda12_plugin") is None,
  reason="nothing here compiles for NVIDIA GPUs",
)
def test_attention_on_a_gpu_moves_what_it_must():
  """One block of XL/1, forward and backward, 128 images, bfloat16, by XLA."""
  machine = topology.describe("h100:1")
  mesh = jax.sharding.Mesh(machine.devices, ("one",))
  here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  block = attention.Attention(16, False, True, "xla", "bfloat16")
  rope = attention.rope_tables(16, 72)

  def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=here)

  x = shape(128, 256, 1152)
  params = {
    "qkv": {"kernel": shape(1152, 3 * 1152), "bias": shape(3 * 1152)},
    "proj": {"kernel": shape(1152, 1152), "bias": shape(1152)},
  }

  def both(params, x, dy):
    y, backward = jax.vjp(
      lambda params, x: block.apply({"params": params}, x, rope), params, x
    )
    return y, backward(dy)

  traced = jax.jit(both).trace(params, x, x)
  lowered = traced.lower(lowering_platforms=("cuda",))
  text = lowered.compile(compiler_options=machine.options).as_text()
  # 10.7 GiB as JAX derives the gradient, with pairs of adjacent channels.
  assert traffic.moved(text) < 9.2 * 2**30
