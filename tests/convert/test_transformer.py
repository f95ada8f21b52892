"""The transformer that a state dict is of, and what is said of other ones."""

import numpy as np
import pytest

from gmem_jax.convert import detect, rules, transformer
from gmem_jax.models import dit

LIGHTNING = dit.LightningDiT(
  channels=3, patch=2, width=24, depth=4, heads=3, token_dim=5
)
SIT = dit.SiT(
  channels=3, patch=2, width=24, depth=8, heads=3, token_dim=5, learn_sigma=True
)


def identify(shapes):
  zero = np.zeros((), np.float32)
  tensors = {name: np.broadcast_to(zero, s) for name, s in shapes.items()}
  return transformer.identify(detect.Contents("lightning_dit", tensors), {})


@pytest.mark.parametrize("network", [LIGHTNING, SIT], ids=["lightning", "sit"])
def test_network_follows_from_shapes(network):
  shapes = transformer.state_dict_shapes(network, 4)
  assert transformer.read_network(shapes, heads=3) == network


def test_number_of_heads_must_be_known():
  shapes = transformer.state_dict_shapes(SIT, 4)
  with pytest.raises(ValueError, match=r"width 24 is not .*384.*num_heads=N"):
    transformer.read_network(shapes)


def test_every_misfit_is_listed():
  shapes = transformer.state_dict_shapes(LIGHTNING, 4)
  del shapes["blocks.2.mlp.w3.bias"]
  shapes["blocks.1.attn.qkv.weight"] = (72, 25)
  shapes["logit_scale"] = ()
  with pytest.raises(rules.NamesError) as error:
    identify(shapes)
  assert sorted(error.value.problems) == [
    "blocks.1.attn.qkv.weight: shape [72, 25], expected [72, 24]",
    "blocks.2.mlp.w3.bias: missing",
    "logit_scale: unexpected",
  ]


@pytest.mark.parametrize(
  ("name", "shape", "problem"),
  [
    ("final_layer.linear.weight", None, "missing"),
    ("x_embedder.proj.weight", (24, 12), "expected 4 axes"),
    ("projector.0.0.weight", (0, 24), "none empty"),
    ("pos_embed", None, "missing"),
  ],
)
def test_names_that_tell_the_widths_are_needed(name, shape, problem):
  shapes = transformer.state_dict_shapes(LIGHTNING, 4)
  del shapes[name]
  # Not a word on this one: what it should be is not known yet.
  del shapes["blocks.2.mlp.w3.bias"]
  if shape is not None:
    shapes[name] = shape
  with pytest.raises(rules.NamesError, match=f"{name}.*{problem}") as error:
    identify(shapes)
  assert len(error.value.problems) == 1
