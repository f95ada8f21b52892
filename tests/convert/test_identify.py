"""What a file is taken for, and what is said of a file that is incomplete."""

import functools
import json
import pathlib
import re

import numpy as np
import pytest

from gmem_jax.convert import (
  detect,
  identify,
  manifest,
  read,
  rules,
  torch_export,
  torch_import,
  transformer,
)
from gmem_jax.convert.detect import Contents
from gmem_jax.convert.names import dinov2
from gmem_jax.files.torch_reader import torch_file
from gmem_jax.models.encoders import dinov2 as dinov2_net
from tests.convert import helpers
from tests.files.torch_reader.test_torch_file import tensor_program

MANIFESTS = pathlib.Path(__file__).parents[2] / "third_party" / "manifests"
# File of names: the title it must be given, in the layout it is published in.
PUBLISHED = {
  "lightningdit-xl-1": ("LightningDiT-XL/1", None),
  "lightningdit-b-1": ("LightningDiT-B/1", None),
  "sit-xl-2": ("SiT-XL/2", "network"),
  "vavae_f16d32": ("VA-VAE f16d32", "state_dict"),
  "marvae_f16d16": ("MAR-VAE f16d16", "model"),
  "dinov2_vitb14": ("DINOv2 ViT-B/14", None),
  "inception_fid": ("FID's InceptionV3", None),
  "efficientnet_lite0": ("EfficientNet-Lite0", None),
}


def hollow(shapes, dtypes=None):
  """Tensors of any size that take no memory."""
  return {
    name: np.broadcast_to(np.zeros((), (dtypes or {}).get(name, "f4")), shape)
    for name, shape in shapes.items()
  }


def manifest_tensors(name):
  keys = json.loads((MANIFESTS / f"{name}.json").read_text())["keys"]
  shapes = {key: tuple(entry["shape"]) for key, entry in keys.items()}
  return hollow(shapes, {k: entry["dtype"] for k, entry in keys.items()})


def source(value, file_format="PyTorch", name="x.pth"):
  return read.OpenFile(pathlib.Path(name), file_format, value)


def test_every_manifest_of_a_network_is_tried():
  files = {p.stem for p in MANIFESTS.glob("*.json")}
  assert files - {"nfe", "init_stats_lightningdit-b-1"} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_complete(name):
  """Recognised, titled, and exactly the names and shapes of the manifest."""
  tensors = manifest_tensors(name)
  title, container = PUBLISHED[name]
  found = detect.detect(source({container: tensors} if container else tensors))
  identity = identify.identify(found, {})
  assert identity.title == title
  described = json.loads((MANIFESTS / f"{name}.json").read_text())
  parameters = identity.parameters(found.tensors)
  buffers = [n for n in tensors if n not in _parameter_names(identity, tensors)]
  total = sum(t.size for t in tensors.values())
  assert parameters == total - sum(tensors[n].size for n in buffers)
  if "lightningdit" in name:
    assert parameters == described["parameters"]


def _parameter_names(identity, tensors):
  paths, _, _ = rules.plan(identity.table, tensors)
  return {name for _, names in paths.values() for name in names}


# What a configuration is read off: the check ends where one of them is wrong.
DECIDING = re.compile(
  r"(pos_embed|(x_embedder|patch_embed)\.proj\.weight|projectors?\.0\.[04]\.weight"
  r"|(condition_projection|final_layer)\.linear\.weight"
  r"|blocks\.0\.(adaLN_modulation\.1|mlp\.fc1)\.weight"
  r"|.*(conv_in|down\.\d+\.block\.0\.conv1|post_quant_conv)\.weight)"
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_everything_wrong_is_listed_at_once(name):
  tensors = manifest_tensors(name)
  names = [n for n, t in tensors.items() if t.ndim and "running" not in n]
  names = [n for n in names if not DECIDING.fullmatch(n)]
  rng = np.random.default_rng(0)
  gone, bent, typed = np.array_split(rng.permutation(names)[:9], 3)
  title, container = PUBLISHED[name]
  broken = {n: t for n, t in tensors.items() if n not in gone}
  broken |= {n: tensors[n][None] for n in bent}
  broken |= {n: tensors[n].astype(np.int8) for n in typed}
  broken |= {"surprise.weight": np.zeros(1, np.float32)}
  if container:
    broken = {container: broken}
  with pytest.raises(rules.NamesError) as error:
    identify.identify(detect.detect(source(broken)), {})
  told = {problem.split(":")[0] for problem in error.value.problems}
  buffers = {n for n in typed if "feat_rope" in n or n == "mask_token"}
  assert told == {*gone, *bent, *typed, "surprise.weight"} - buffers
  assert title in str(error.value)


def _deciding(names):
  """The names that a configuration is read off, and one of each other sort."""
  patterns = {re.sub(r"\d+", "N", name): name for name in reversed(names)}
  return sorted(patterns.values())


@pytest.mark.golden
@pytest.mark.parametrize(
  "fault",
  ["missing", "stacked", pytest.param("doubled", marks=pytest.mark.slow)],
)
def test_one_wrong_name_is_named(golden_dir, monkeypatch, fault):
  """Whichever it is, also one that the configuration is read off."""
  # Hundreds of files are of the same few networks.
  implied = functools.cache(transformer.state_dict_shapes)
  monkeypatch.setattr(
    transformer, "state_dict_shapes", lambda *args: dict(implied(*args))
  )
  tried = 0
  for path in helpers.golden_files(golden_dir):
    found = detect.detect(read.open_source(path))
    if found.kind not in ("lightning_dit", "sit", "dinov2"):
      continue
    pairs = [option.split("=") for option in helpers.settings(path)[1:]]
    settings = {identify.SETTINGS[k]: int(v) for k, v in pairs}
    for name in _deciding(list(found.tensors)):
      broken = dict(found.tensors)
      tensor = broken.pop(name)
      if fault == "stacked":
        broken[name] = np.stack([tensor, tensor])
      elif fault == "doubled":
        broken[name] = np.concatenate([tensor, tensor])
      with pytest.raises((rules.NamesError, ValueError)) as error:
        identify.identify(
          Contents(found.kind, broken, config=found.config), settings
        )
      problems = getattr(error.value, "problems", None)
      assert problems, (path, name, error.value)
      if fault == "doubled":
        # Its other half may be blamed: both are named. By a wrong width, many
        # are.
        assert any(name in problem for problem in problems), (path, problems)
        assert len(problems) == 1 or DECIDING.fullmatch(name), (path, name)
      elif fault == "stacked":
        assert len(problems) == 1, (path, name, problems)
        shape = list(broken[name].shape)
        assert problems[0].startswith(f"{name}: shape {shape}"), path
      else:
        assert problems == (f"{name}: missing",), path
      tried += 1
  assert tried


@pytest.mark.golden
def test_configurations_are_read_off(golden_dir):
  """Against the configuration that the published code was run with."""
  ours = {
    "hidden_size": "width",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "patch_size": "patch",
    "in_channels": "channels",
    "use_swiglu": "swiglu",
    "use_rope": "rope",
    "use_rmsnorm": "rms_norm",
    "use_qknorm": "qk_norm",
    "learn_sigma": "learn_sigma",
    "condition_dim": "snippet_dim",
    "projector_dim": "projector_width",
    "encoder_depth": "projector_depth",
    "ch": "ch",
    "ch_mult": "ch_mult",
    "num_groups": "num_groups",
    "num_res_blocks": "num_res_blocks",
  }
  compared = 0
  for path in helpers.golden_files(golden_dir):
    config = helpers.configuration(path)
    if not config:
      continue
    found = detect.detect(read.open_source(path))
    pairs = [option.split("=") for option in helpers.settings(path)[1:]]
    settings = {identify.SETTINGS[k]: int(v) for k, v in pairs}
    model = identify.identify(found, settings).model
    if found.kind == "vae":
      del config["embed_dim"]
    for theirs, name in ours.items():
      if theirs in config and name in model:
        assert model[name] == config[theirs], (path, name)
        compared += 1
    if "wo_shift" in config:
      assert model["shift"] is not config["wo_shift"]
  assert compared


@pytest.mark.golden
def test_the_number_of_heads(golden_dir):
  """From a table, from the user, or an error that asks for it."""
  tables = ("feat_rope.freqs_cos", "blocks.0.attn.q_norm.weight")
  tried = 0
  for path in helpers.golden_files(golden_dir):
    found = detect.detect(read.open_source(path))
    if found.kind not in ("lightning_dit", "sit", "dinov2"):
      continue
    heads = helpers.configuration(path)["num_heads"]
    assert identify.identify(found, {"heads": heads}).model["heads"] == heads
    if any(name in found.tensors for name in tables):
      assert identify.identify(found, {}).model["heads"] == heads
      with pytest.raises(ValueError, match=f"but the file has {heads}"):
        identify.identify(found, {"heads": heads + 1})
    elif found.tensors["pos_embed"].shape[-1] not in (384, 768, 1024, 1152):
      with pytest.raises(ValueError, match="--model num_heads=N"):
        identify.identify(found, {})
    tried += 1
  assert tried


def test_published_widths_need_no_setting():
  model = identify.identify(
    detect.detect(source({"network": manifest_tensors("sit-xl-2")})), {}
  ).model
  assert (model["heads"], model["projector_depth"]) == (16, 8)


def test_settings_that_do_not_apply_are_refused():
  found = Contents("bank", {"rows": np.ones((2, 3))})
  with pytest.raises(ValueError, match="heads does not apply"):
    identify.identify(found, {"heads": 2})


def test_the_trainers_flags_are_compared():
  tensors = manifest_tensors("lightningdit-b-1")
  for flag, value in (("use_rope", False), ("wo_shift", True)):
    found = Contents("lightning_dit", tensors, config={"model": {flag: value}})
    with pytest.raises(rules.NamesError, match=f"config.model.{flag} is"):
      identify.identify(found, {})


def test_other_dinov2_sizes():
  small = dinov2_net.DINOv2(width=384, depth=12, heads=6)
  shapes = manifest.expected(small, [(1, 256, 256, 3)], dinov2.RULES, {})
  found = detect.detect(source(hollow({**shapes, "mask_token": (1, 384)})))
  identity = identify.identify(found, {})
  assert identity.title == "DINOv2 ViT-S/14"
  assert identity.model["heads"] == 6


def _wrap_blocks(name, wrapper):
  return re.sub(r"^blocks\.(\d+)", rf"blocks.\1.{wrapper}", name)


@pytest.mark.parametrize(
  "wrap",
  [
    lambda name: f"module.{name}",
    lambda name: f"module.module.{name}",
    lambda name: f"_orig_mod.{name}",
    lambda name: f"_fsdp_wrapped_module.{name}",
    lambda name: _wrap_blocks(name, "_orig_mod"),
    lambda name: f"module.{_wrap_blocks(name, '_orig_mod')}",
    lambda name: (
      "_fsdp_wrapped_module."
      + _wrap_blocks(name, "_fsdp_wrapped_module._checkpoint_wrapped_module")
    ),
    # A part of a network under one wrapper, the rest under none.
    lambda name: name.replace("x_embedder.", "x_embedder.module."),
  ],
)
def test_wrappers_are_taken_off(wrap):
  tensors = manifest_tensors("lightningdit-b-1")
  wrapped = {wrap(name): t for name, t in tensors.items()}
  assert wrapped.keys() != tensors.keys()
  for value in (
    wrapped,
    {"model": wrapped},
    {"model": wrapped, "ema": tensors},
  ):
    found = detect.detect(source(value))
    assert list(found.tensors) == list(tensors)
    assert identify.identify(found, {}).title == "LightningDiT-B/1"


def test_two_names_of_one_tensor_are_refused():
  tensors = manifest_tensors("lightningdit-b-1")
  tensors["module.pos_embed"] = tensors["pos_embed"]
  message = "one tensor under two names, pos_embed and module.pos_embed"
  with pytest.raises(read.WrongFile, match=message):
    detect.detect(source(tensors))


def test_which_of_the_two_sets():
  tensors = manifest_tensors("lightningdit-b-1")
  both = source({"model": tensors, "ema": tensors}, name="0080000.pt")
  assert detect.detect(both).weights == "ema"
  assert detect.detect(both, "model").weights == "model"
  assert detect.detect(both).step == 80_000
  with pytest.raises(read.WrongFile, match="no 'ema' weights"):
    detect.detect(source({"model": tensors}), "ema")
  with pytest.raises(read.WrongFile, match="holds one set of weights"):
    detect.detect(source(tensors), "ema")


_TENSOR = np.ones((3, 3), np.float32)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ({"y_embedder.embedding_table.weight": _TENSOR}, "label-conditional"),
    ({"register_tokens": _TENSOR, "cls_token": _TENSOR}, "with registers"),
    ({"AuxLogits.conv0.conv.weight": _TENSOR}, "torchvision's Inception"),
    ({"blocks.0._fsdp_wrapped_module._flat_param": _TENSOR}, "flattened"),
    ({"visual.proj": _TENSOR, "logit_scale": _TENSOR}, "CLIP"),
    ({"latents": _TENSOR, "labels": _TENSOR}, "shard of encoded training"),
    ({"state": {0: {}}, "param_groups": []}, "state of an optimizer"),
    ({"layer.weight": _TENSOR}, "of no network that GMem uses"),
    ({}, "empty state dict"),
    ({"a": 1}, "not every entry is a tensor"),
    ([_TENSOR], "holds a list"),
    (_TENSOR[0], r"of shape \(3,\)"),
    (_TENSOR.astype(np.int64), "int64 tensor"),
    (3, "holds a int"),
  ],
)
def test_wrong_files_are_named(value, message):
  with pytest.raises(read.WrongFile, match=message):
    detect.detect(source(value))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    (b"<!DOCTYPE html><html>", "a web page"),
    (b'{"a": 1}', "JSON, and no index of shards"),
    (b'{"weight_map": {}}', "JSON, and no index of shards"),
    (b"\x93NUMPY\x01\x00", r"\.npy"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x10" + bytes(7) + b'{"a": 1}xxxxxxxx', "damaged safetensors"),
  ],
)
def test_wrong_formats_are_named(tmp_path, content, message):
  path = tmp_path / "x.pth"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    read.open_source(path)
  with pytest.raises(read.WrongFile, match="is a directory"):
    read.open_source(tmp_path)


def _doubling():
  """A list of 2^60 parts, of which numpy would make an array."""
  value = [1, 2, 3]
  for _ in range(60):
    value = [value, value]
  return value


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"memoryfreq": [1, 2]}, "not 3 integers"),
    ({"memoryfreq": [1.0, 2.0, 3.0]}, "not 3 integers"),
    ({"memoryfreq": [1, -2, 3]}, "negative"),
    ({"memoryfreq": [0, 0, 0]}, "none that is positive"),
    ({"memoryfreq": [[1], [2, 3], 4]}, "no list of numbers"),
    ({"memoryfreq": _doubling()}, "no list of numbers"),
    ({"memoryfreq": 3}, "no list of numbers"),
    ({"memorybank": np.ones((3, 5), "f4")}, r"no tensor \[rows, 4\]"),
    ({"memorybank": None}, "a release holds"),
    ({"other": 1}, "a release holds"),
  ],
)
def test_a_bank_that_does_not_fit_is_refused(change, message):
  bank = {"memorybank": np.ones((3, 4), "f4"), "memoryfreq": [1, 2, 3]}
  rows = torch_import.release_bank(bank, {"snippet_dim": 4})
  assert rows["counts"].tolist() == [1, 2, 3]
  with pytest.raises(read.WrongFile, match=message):
    torch_import.release_bank({**bank, **change}, {"snippet_dim": 4})


def test_tensors_larger_than_the_file_are_refused(tmp_path):
  path = tmp_path / "x.pth"
  torch_export.save(np.ones((1, 1), np.float32), path)
  torch_file.load(path)
  # A bank of 2^40 rows, all the same four bytes.
  program = tensor_program(0, (2**40, 4), (0, 1))
  helpers.zip_with_pickle(path, program, {"0": bytes(24)})
  code, _, err = helpers.run(path, tmp_path / "out")
  assert code == 2
  assert "they repeat themselves" in err
