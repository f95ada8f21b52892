"""The engine of name tables: exact in both directions, and strict."""

import numpy as np
import pytest
from flax import traverse_util

from gmem_jax.convert import rules
from gmem_jax.convert.rules import NamesError, Rule

TABLE = (
  Rule(r"embed\.weight", "embed/kernel", "conv_linear"),
  Rule(r"blocks\.(?P<i>\d+)\.fc\.weight", "blocks/fc/kernel", "linear", "i"),
  Rule(r"blocks\.(?P<i>\d+)\.norm\.weight", "blocks/norm", stack="i"),
  Rule(r"(?P<side>up|down)\.conv\.weight", "{side}/kernel", "conv"),
  Rule(r"mix\.weight", "mix/kernel", "conv_1x1"),
  Rule(r"stats", "stats", "per_channel"),
  Rule(r"table", "", "buffer"),
  Rule(r"loss\..+", "", "drop"),
)


def make_state_dict(layers=3):
  random = np.random.default_rng(0)
  shapes = {
    "embed.weight": (5, 3, 2, 2),
    **{f"blocks.{i}.fc.weight": (7, 4) for i in range(layers)},
    **{f"blocks.{i}.norm.weight": (4,) for i in range(layers)},
    "up.conv.weight": (6, 5, 3, 3),
    "down.conv.weight": (6, 5, 3, 1),
    "mix.weight": (6, 5, 1, 1),
    "stats": (1, 4, 1, 1),
    "table": (2, 2),
  }
  return {n: random.normal(size=s).astype("f4") for n, s in shapes.items()}


def test_layouts_are_those_of_flax():
  state_dict = make_state_dict()
  params = rules.to_flax(TABLE, state_dict)
  fc = params["blocks"]["fc"]["kernel"]
  assert fc.shape == (3, 4, 7)
  np.testing.assert_array_equal(fc[2], state_dict["blocks.2.fc.weight"].T)
  conv = params["up"]["kernel"]
  assert conv[2, 1, 4, 3] == state_dict["up.conv.weight"][3, 4, 2, 1]
  mix = params["mix"]["kernel"]
  assert mix[4, 3] == state_dict["mix.weight"][3, 4, 0, 0]
  # Channel fastest, then column, then row.
  row, column, channel, out = 1, 0, 2, 4
  embed = params["embed"]["kernel"][(row * 2 + column) * 3 + channel, out]
  assert embed == state_dict["embed.weight"][out, channel, row, column]
  assert params["stats"].shape == (4,)
  assert "table" not in params


def test_results_own_contiguous_memory():
  state_dict = make_state_dict()
  params = rules.to_flax(TABLE, state_dict)
  for path, array in traverse_util.flatten_dict(params, sep="/").items():
    assert array.flags.owndata, path
    assert array.flags.c_contiguous, path
    assert not any(np.shares_memory(array, t) for t in state_dict.values())


def test_round_trip_is_bitwise():
  state_dict = make_state_dict()
  shapes = {name: tensor.shape for name, tensor in state_dict.items()}
  params = rules.to_flax(TABLE, {**state_dict, "loss.x": np.zeros(1)})
  back = rules.to_torch(TABLE, params, shapes)
  back |= rules.buffers(TABLE, state_dict)
  assert back.keys() == state_dict.keys()
  for name, tensor in state_dict.items():
    np.testing.assert_array_equal(back[name], tensor)


def test_every_tensor_is_reported_once():
  state_dict, seen = make_state_dict(), {}
  del state_dict["table"]

  def report(name, array):
    assert name not in seen
    seen[name] = np.sort(array.flat)

  rules.to_flax(TABLE, state_dict, report)
  assert seen.keys() == state_dict.keys()
  for name, tensor in state_dict.items():
    np.testing.assert_array_equal(seen[name], np.sort(tensor.flat))


def test_all_faulty_names_are_in_one_error():
  state_dict = make_state_dict(layers=4)
  del state_dict["blocks.1.fc.weight"], state_dict["blocks.2.norm.weight"]
  state_dict |= {"foreign": np.zeros(1), "blocks.x.fc.weight": np.zeros(1)}
  with pytest.raises(NamesError) as error:
    rules.to_flax(TABLE, state_dict)
  assert set(error.value.problems) == {
    "blocks.1.fc.weight: missing",
    "blocks.2.norm.weight: missing",
    "foreign: unexpected",
    "blocks.x.fc.weight: unexpected",
  }
  assert all(p in str(error.value) for p in error.value.problems)


def test_a_name_that_two_rules_take_is_refused():
  table = (*TABLE, Rule(r"mix\.(?P<x>weight)", "other/{x}"))
  with pytest.raises(NamesError, match=r"mix.weight: taken by"):
    rules.to_flax(table, make_state_dict())


def test_a_path_that_two_names_fill_is_refused():
  table = (Rule("a", "x"), Rule("b", "x"))
  with pytest.raises(NamesError, match="b: doubled, x already comes from a"):
    rules.to_flax(table, {"a": np.zeros(1), "b": np.zeros(1)})


def test_layers_of_different_shape_are_refused():
  state_dict = make_state_dict()
  state_dict["blocks.1.norm.weight"] = np.zeros(5, "f4")
  with pytest.raises(NamesError, match=r"layer 1 is float32\[5\]"):
    rules.to_flax(TABLE, state_dict)


def test_a_tensor_of_the_wrong_rank_is_refused():
  state_dict = make_state_dict()
  state_dict["mix.weight"] = np.zeros((6, 5), "f4")
  with pytest.raises(NamesError, match="takes 4 axes"):
    rules.to_flax(TABLE, state_dict)


def test_an_absurd_layer_index_does_not_fill_the_memory():
  state_dict = {"blocks.999999999999.norm.weight": np.zeros(4)}
  with pytest.raises(NamesError, match="layer 999999999999"):
    rules.to_flax(TABLE, state_dict)


def test_foreign_parameters_are_refused_on_the_way_back():
  params = rules.to_flax(TABLE, make_state_dict())
  shapes = {"embed.weight": (5, 3, 2, 2)}
  with pytest.raises(NamesError, match="extra/kernel: unexpected"):
    rules.to_torch(TABLE, {**params, "extra": {"kernel": np.ones(1)}}, shapes)
  with pytest.raises(NamesError, match=r"embed.weight.*must be given"):
    rules.to_torch(TABLE, params)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("a", "b", "transpose"), "transform 'transpose' is not one of"),
    ((r"a\.(?P<i>\d+)", "b"), "its groups"),
    (("a", "b/{i}"), "its groups"),
    ((r"a\.(?P<i>\d+)", "b/{i}", "keep", "j"), "its groups"),
  ],
)
def test_a_rule_that_cannot_be_inverted_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    Rule(*arguments)
