"""What the transformers' tables refuse, and how they say so."""

import pytest

from gmem_jax.convert import rules
from gmem_jax.convert.names import dit
from gmem_jax.models import lightning_dit, sit

LIGHTNING = lightning_dit.LightningDiT(
  channels=3, patch=2, width=24, depth=4, heads=3, token_dim=5
)
SIT = sit.SiT(
  channels=3, patch=2, width=24, depth=8, heads=3, token_dim=5, learn_sigma=True
)


@pytest.mark.parametrize("network", [LIGHTNING, SIT], ids=["lightning", "sit"])
def test_network_follows_from_shapes(network):
  shapes = dit.state_dict_shapes(network, 4)
  assert dit.network(shapes, heads=3) == network
  dit.check(shapes, network)


def test_number_of_heads_must_be_known():
  with pytest.raises(ValueError, match=r"width 24 is not .*384.*model\.heads"):
    dit.network(dit.state_dict_shapes(SIT, 4))


def test_every_misfit_is_listed():
  shapes = dit.state_dict_shapes(LIGHTNING, 4)
  del shapes["blocks.2.mlp.w3.bias"]
  shapes["blocks.1.attn.qkv.weight"] = (72, 25)
  shapes["logit_scale"] = ()
  with pytest.raises(rules.NamesError) as error:
    dit.check(shapes, LIGHTNING)
  assert sorted(error.value.problems) == [
    "blocks.1.attn.qkv.weight: shape (72, 25), not (72, 24)",
    "blocks.2.mlp.w3.bias: missing",
    "logit_scale: unexpected",
  ]


@pytest.mark.parametrize(
  ("name", "shape", "problem"),
  [
    ("final_layer.linear.weight", None, "missing"),
    ("x_embedder.proj.weight", (24, 12), "expected 4 axes"),
    ("projector.0.0.weight", (0, 24), "none empty"),
  ],
)
def test_shapes_that_tell_the_widths_are_needed(name, shape, problem):
  shapes = dit.state_dict_shapes(LIGHTNING, 4)
  del shapes[name]
  if shape is not None:
    shapes[name] = shape
  with pytest.raises(rules.NamesError, match=f"{name}.*{problem}"):
    dit.network(shapes)
