"""The transformer that a state dict is of, and what is said of other ones."""

import json
import re

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


SEVERAL = tuple(range(5, 17))


def identify(shapes, kind="lightning_dit"):
  zero = np.zeros((), np.float32)
  tensors = {name: np.broadcast_to(zero, s) for name, s in shapes.items()}
  return transformer.identify(detect.Contents(kind, tensors), {"heads": 3})


@pytest.mark.parametrize("token_dim", [5, (5, 7), SEVERAL])
@pytest.mark.parametrize("kind", ["lightning_dit", "sit"])
def test_network_follows_from_shapes(kind, token_dim):
  network = {"lightning_dit": LIGHTNING, "sit": SIT}[kind]
  network = network.clone(token_dim=token_dim)
  shapes = transformer.state_dict_shapes(network, 4)
  # In any order of names: there may be more than ten.
  shapes = dict(sorted(shapes.items()))
  assert transformer.read_network(kind, shapes, heads=3) == network
  model = identify(shapes, kind).model
  assert model["token_dim"] == token_dim
  # As it is read back, where JSON makes lists of tuples.
  again = network.clone(token_dim=json.loads(json.dumps(token_dim)))
  assert again == network
  assert hash(again) == hash(network)


@pytest.mark.parametrize(
  ("gone", "problem"),
  [
    (r"projectors\.1\.4\.weight", "projectors.1.4.weight: missing"),
    (r"projectors\.1\.2\.bias", "projectors.1.2.bias: missing"),
    (r"projectors\.0\.4\.weight", "projectors.0.4.weight: missing"),
    # A whole projector between others.
    (r"projectors\.1\..*", "projectors.1.4.weight: missing"),
  ],
)
def test_what_one_of_several_projectors_lacks_is_named(gone, problem):
  shapes = transformer.state_dict_shapes(SIT.clone(token_dim=(5, 7, 3)), 4)
  shapes = {n: s for n, s in shapes.items() if not re.fullmatch(gone, n)}
  with pytest.raises(rules.NamesError) as error:
    identify(shapes, "sit")
  assert error.value.problems == (problem,)


@pytest.mark.parametrize(
  ("kind", "stray", "family"),
  [
    ("lightning_dit", "projectors.0.0.weight", "SiT"),
    ("sit", "projector.0.0.weight", "LightningDiT"),
  ],
)
def test_a_name_of_the_other_family_is_called_so(kind, stray, family):
  network = {"lightning_dit": LIGHTNING, "sit": SIT}[kind]
  shapes = transformer.state_dict_shapes(network, 4)
  shapes[stray] = shapes["blocks.0.attn.proj.weight"]
  tensors = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
  assert detect._kind(tensors) == kind
  with pytest.raises(rules.NamesError) as error:
    identify(shapes, kind)
  assert error.value.problems == (f"{stray}: unexpected, a name of {family}'s",)


def test_number_of_heads_must_be_known():
  shapes = transformer.state_dict_shapes(SIT, 4)
  with pytest.raises(ValueError, match=r"width 24 is not .*384.*num_heads=N"):
    transformer.read_network("sit", shapes)


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
