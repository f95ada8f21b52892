"""Collectives are counted as they run: loops, pieces, groups."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gmem_jax.aot import hlo
from gmem_jax.parallel import sharding

# In the forms that XLA writes for TPUs and CPUs, cut to what is read.
TEXT = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%piece.1 (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="3"}
}

%piece.2 (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={chain_id="3"}
}

%all-reduce-scatter.5.clone (q: f32[64]) -> f32[8] {
  %q = f32[64]{0} parameter(0)
  %all-reduce.9 = f32[64]{0} all-reduce(%q), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[8]{0} dynamic-slice(%all-reduce.9, %i), dynamic_slice_sizes={8}
}

%body (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0}) parameter(0)
  %a = bf16[16,8]{1,0} fusion(%g), kind=kCustom, calls=%piece.1
  %b = bf16[16,8]{1,0} fusion(%g), kind=kCustom, calls=%piece.2
  %c = f32[8]{0} fusion(%h), kind=kCustom, calls=%all-reduce-scatter.5.clone
  ROOT %r = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%i, %g)
}

%condition (t: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%init), condition=%condition, body=%body
  %both = (f32[10]{0}, bf16[6]{0}) all-reduce(%u, %v), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %start = (f32[5]{0}, f32[40]{0}) all-gather-start(%w), channel_id=3, replica_groups={}, dimensions={0}
  %done = f32[40]{0} all-gather-done(%start)
  %move = (f32[3]{0}, f32[3]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%w), channel_id=4, source_target_pairs={{0,1}}
  %scatter = f32[2]{0} reduce-scatter(%w), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  %handed = (f32[16,4]{1,0:T(8,128)}, u32[], token[]) send(%w, %after), channel_id=8, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %taken = (f32[16,4]{1,0:T(8,128)}, u32[], token[]) recv(%after), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %exchange = f32[8]{0} all-to-all(%w), channel_id=6, replica_groups=[4,2]<=[8], dimensions={0}
}
"""  # noqa: E501


def test_counts_and_bytes():
  found = {c.kind: c for c in hlo.collectives(TEXT, devices=8)}
  gather = 2.0 * 16 * 8  # the two pieces are one
  assert found["all-gather"] == hlo.Collective(
    "all-gather",
    count=28 + 1,
    size=gather,
    payload=28 * gather + 160,
    sent=28 * gather * 3 / 4 + 160 * 7 / 8,
  )
  both = 4.0 * 10 + 2 * 6
  assert found["all-reduce"] == hlo.Collective(
    "all-reduce", 1, both, both, 2 * both * 3 / 4, 1, 2 * both * 3 / 4
  )
  assert found["reduce-scatter"] == hlo.Collective(
    "reduce-scatter",
    count=28 + 1,
    size=256.0,
    payload=28.0 * 256 + 2 * 4 * 8,
    sent=(28 * 256 + 64) * 7 / 8,
    waiting=28 + 1,
    sent_waiting=(28 * 256 + 64) * 7 / 8,
  )
  assert found["collective-permute"] == hlo.Collective(
    "collective-permute", 1, 12.0, 12.0, 12.0
  )
  assert found["all-to-all"] == hlo.Collective(
    "all-to-all", 1, 32.0, 32.0, 16.0, 1, 16.0
  )
  # In a ring of one chip of each of three slices.
  between = "all-reduce between slices"
  assert found[between] == hlo.Collective(
    between, 1, 256.0, 256.0, 2 * 256 * 2 / 3
  )


def test_trips_that_are_written_count():
  text = TEXT.replace(
    "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
  )
  (found, *_) = hlo.collectives(text, devices=8)
  assert found.count == 5 + 1


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo.collectives("HloModule nothing", devices=1)


@pytest.mark.multidevice
def test_a_compiled_loop():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4, tensor=1))
  split = NamedSharding(mesh, P("fsdp", None))
  kernels = NamedSharding(mesh, P(None, "fsdp", None))

  def f(x, kernels):
    def body(x, kernel):
      x = jax.lax.with_sharding_constraint(jnp.tanh(x @ kernel), split)
      return x, None

    return jax.lax.scan(body, x, kernels)[0].sum()

  x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split)
  w = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32, sharding=kernels)
  text = jax.jit(f).lower(x, w).compile().as_text()
  found = {c.kind: c for c in hlo.collectives(text, devices=4)}
  assert found.keys() == {"all-gather", "all-reduce"}
  gathers = found["all-gather"]
  # Each kernel is gathered, in one piece or all of them at once.
  assert gathers.payload == 5 * 32 * 32 * 4
  assert gathers.sent == gathers.payload * 3 / 4
  assert found["all-reduce"].payload == 4
