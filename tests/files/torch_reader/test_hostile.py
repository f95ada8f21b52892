"""A hundred files that were damaged or made to harm: refused, and inert."""

import io
import json
import pathlib
import pickle
import random
import re
import zipfile

import numpy as np
import pytest

from gmem_jax.convert import torch_export, torch_import
from gmem_jax.files.torch_reader import inert_pickle, torch_file
from tests.convert import helpers

FLIPPED, TRUNCATED, MISSHAPEN = range(40), range(30), range(20)


def _global(module, name):
  return f"c{module}\n{name}\n".encode()


def _text(text):
  return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _stack_global(module, name):
  return _text(module) + _text(name) + b"\x93"


def _touch(path):
  return f"touch {path}"


def _write(path):
  return f"__import__('pathlib').Path({str(path)!r}).touch()"


# Each makes a pickle that creates the file `path` if Python's own unpickler
# loads it.
PAYLOADS = {
  "os.system": lambda path: (
    b"\x80\x02" + _global("os", "system") + _text(_touch(path)) + b"\x85R."
  ),
  "posix.system": lambda path: (
    b"\x80\x02" + _global("posix", "system") + _text(_touch(path)) + b"\x85R."
  ),
  "os.system in protocol 4": lambda path: (
    b"\x80\x04"
    + _stack_global("os", "system")
    + _text(_touch(path))
    + b"\x85R."
  ),
  "builtins.eval": lambda path: (
    b"\x80\x02" + _global("builtins", "eval") + _text(_write(path)) + b"\x85R."
  ),
  "builtins.exec": lambda path: (
    b"\x80\x02" + _global("builtins", "exec") + _text(_write(path)) + b"\x85R."
  ),
  "nested reduce": lambda path: (
    # getattr(__import__("os"), "system")("touch ..")
    b"\x80\x02"
    + _global("builtins", "getattr")
    + _global("builtins", "__import__")
    + _text("os")
    + b"\x85R"
    + _text("system")
    + b"\x86R"
    + _text(_touch(path))
    + b"\x85R."
  ),
  "reduce inside a state dict": lambda path: (
    b"\x80\x02}("
    + _text("weight")
    + _global("os", "system")
    + _text(_touch(path))
    + b"\x85Ru."
  ),
  "reduce as a key": lambda path: (
    b"\x80\x02}"
    + _global("os", "system")
    + _text(_touch(path))
    + b"\x85RK\x01s."
  ),
  "instance of protocol 0": lambda path: (
    b"(" + _text(_touch(path)) + b"ios\nsystem\n."
  ),
  "object of protocol 1": lambda path: (
    b"(" + _global("os", "system") + _text(_touch(path)) + b"o."
  ),
  "popen": lambda path: (
    b"\x80\x02"
    + _global("subprocess", "check_output")
    + b"]("
    + _text("touch")
    + _text(str(path))
    + b"e\x85R."
  ),
  "a call of what a call returned": lambda path: (
    # operator.methodcaller("touch")(pathlib.Path(..))
    b"\x80\x02"
    + _global("operator", "methodcaller")
    + _text("touch")
    + b"\x85R"
    + _global("pathlib", "Path")
    + _text(str(path))
    + b"\x85R\x85R."
  ),
  "map over system": lambda path: (
    b"\x80\x02"
    + _global("builtins", "list")
    + _global("builtins", "map")
    + _global("os", "system")
    + b"]"
    + _text(_touch(path))
    + b"a\x86R\x85R."
  ),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_hostile_pickle_never_runs(tmp_path, name):
  sentinel = tmp_path / "sentinel"
  program = PAYLOADS[name](sentinel)
  path = helpers.zip_with_pickle(tmp_path / "hostile.pth", program)
  code, out, err = helpers.run(path, tmp_path / "out")
  assert not sentinel.exists(), "the payload ran"
  assert code == 2
  assert out == ""
  assert err.startswith("gmem_jax: ")
  assert "Traceback" not in err
  assert not (tmp_path / "out").exists()
  named = "system", "eval", "exec", "check_output", "methodcaller", "__import__"
  assert any(word in err for word in named), err
  # The payload is not a dud.
  pickle.loads(program)
  assert sentinel.exists()


@pytest.mark.parametrize(
  ("program", "message"),
  [
    (b"\x80\x02" + _global("os", "system") + b".", r"os\.system"),
    (b"\x80\x02]" + _global("torch", "FloatStorage") + b"\x85R.", "a call of"),
    (b"\x80\x02K\x01K\x02\x85R.", "a call of a int"),
    (b"\x80\x02]}b.", "attributes of a list"),
    (b"\x80\x02\x82\x01.", "EXT1 is not accepted"),
    (b"P1\n.", "PERSID is not accepted"),
    (b"\x80\x02(K\x01tQ.", "a persistent id"),
    (b"\x80\x09K\x01.", "protocol 9"),
    (b"\x80\x02", "not a PyTorch|STOP|exhausted"),
    (b"\x80\x02e.", "no mark"),
    (b"\x80\x02\x86.", "stack too short"),
    (b"\x80\x02h\x05.", "damaged pickle"),
    # Sizes far beyond the bytes that follow.
    (b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"a.", "damaged pickle"),
    (b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"a.", "damaged"),
    (b"\x80\x02Nr\xff\xff\xff\xff.", "holds a NoneType"),
    # Hashing what the file chooses: deep tuples overflow the stack.
    (b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.", "a tuple as a key"),
    (b"\x80\x02}]Ns.", "a list as a key"),
    (b"\x80\x02}(K\x01u.", "damaged pickle"),
    (
      b"\x80\x02"
      + _global("_codecs", "encode")
      + _text("a")
      + _text("rot13")
      + b"\x86R.",
      "encoding 'rot13'",
    ),
    (
      b"\x80\x02" + _global("numpy", "dtype") + _text("O8") + b"\x85R.",
      "numpy arrays of 'O8'",
    ),
    (
      b"\x80\x02" + _global("torch", "Size") + b"K\x05\x85R.",
      r"arguments of torch\.Size",
    ),
    (
      b"\x80\x02" + _global("torch._utils", "_rebuild_tensor_v2") + b"NK\x00))"
      b"t" + b".",
      "no mark",
    ),
    (
      b"\x80\x02"
      + _global("torch._utils", "_rebuild_tensor_v2")
      + b"(NK\x00))tR.",
      "a tensor without a storage",
    ),
    (
      b"\x80\x02("
      + _text("storage")
      + _text("FloatStorage")
      + _text("0")
      + _text("cpu")
      + b"K\x01tQ.",
      "a storage of kind 'FloatStorage'",
    ),
    (b"\x80\x02" + _global("torch", "Size") + b"\x85.", r"load torch\.Size"),
  ],
)
def test_a_malformed_pickle_is_refused(tmp_path, program, message):
  path = helpers.zip_with_pickle(tmp_path / "x.pth", program)
  code, _, err = helpers.run(path, tmp_path / "out")
  assert code == 2
  assert re.search(message, err), err


def test_a_value_that_contains_itself_is_refused(tmp_path):
  # d = {}; d["model"] = d; d["config"] = a list that doubles 40 times.
  program = b"\x80\x02}q\x00" + _text("model") + b"h\x00s."
  path = helpers.zip_with_pickle(tmp_path / "x.pth", program)
  code, _, err = helpers.run(path, "--dry-run")
  assert code == 2
  assert "no state dict" in err


def test_terminal_control_in_a_name_is_not_printed(tmp_path):
  name = "\x1b[2Jweight"
  path = tmp_path / "x.pth"
  torch_export.save({name: np.ones(3, np.float32)}, path)
  code, out, err = helpers.run(path, "--dry-run")
  assert code == 2
  assert "\x1b" not in out + err
  assert "\\x1b[2Jweight" in err


def test_a_billion_laughs_in_the_config_is_left_out():
  value = "ha"
  for _ in range(60):
    value = [value] * 10
  assert torch_import.plain_json(value) is None
  deep = []
  for _ in range(5000):
    deep = [deep]
  assert torch_import.plain_json(deep) is None
  assert torch_import.plain_json({"a": [1, (2.5, None)], 3: float("inf")}) == {
    "a": [1, [2.5, None]],
    "3": "inf",
  }


def test_the_reader_has_nothing_to_call():
  """The machine's module imports nothing that can run or open anything."""
  names = set(vars(inert_pickle))
  assert not names & {"os", "subprocess", "importlib", "builtins", "pickle"}


def _small_files(golden_dir):
  """Golden files that convert in well under a second each."""
  files = [
    p for p in helpers.golden_files(golden_dir) if p.stat().st_size < 300_000
  ]
  assert files
  return files


def _convert(path, tmp_path):
  """Exit code, message and, after success, what comes back."""
  out = tmp_path / "out.safetensors"
  out.unlink(missing_ok=True)
  arguments = ["--format=safetensors", *_heads(path)]
  code, _, err = helpers.run(path, out, *arguments)
  assert "Traceback" not in err
  if code:
    assert err.startswith("gmem_jax: "), err
    assert len(err) > len("gmem_jax: ") + 10
    assert not out.exists()
  return code, err, out.read_bytes() if code == 0 else b""


def _heads(path):
  stem = pathlib.Path(path).name.split("@")[0]
  return SETTINGS.get(stem, [])


SETTINGS: dict[str, list[str]] = {}


@pytest.fixture
def originals(golden_dir, tmp_path):
  """The bytes of small goldens by name; their settings in SETTINGS."""
  blobs = {}
  for path in _small_files(golden_dir):
    SETTINGS[path.name] = helpers.settings(path)
    blobs[path.name] = path.read_bytes()
  return blobs


def _tensors(container):
  """The arrays of a converted safetensors file, without its provenance."""
  size = int.from_bytes(container[:8], "little")
  header = json.loads(container[8 : 8 + size])
  header.pop("__metadata__")
  return header, container[8 + size :]


@pytest.mark.golden
@pytest.mark.parametrize("seed", FLIPPED)
def test_flipped_bytes_are_noticed_or_harmless(originals, tmp_path, seed):
  rng = random.Random(seed)
  name = rng.choice(sorted(originals))
  good, data = originals[name], bytearray(originals[name])
  for _ in range(rng.randint(1, 3)):
    data[rng.randrange(len(data))] ^= rng.randint(1, 255)
  path = tmp_path / f"{name}@flipped"
  path.write_bytes(data)
  code, _, flipped = _convert(path, tmp_path)
  if code == 0:
    # Only bytes that carry nothing may pass: padding, dates, attributes.
    path.write_bytes(good)
    code, _, whole = _convert(path, tmp_path)
    assert code == 0
    assert _tensors(flipped) == _tensors(whole)


@pytest.mark.golden
@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_byte_of_a_tensor_is_always_noticed(
  originals, tmp_path, seed
):
  rng = random.Random(seed)
  name = rng.choice(sorted(originals))
  data = bytearray(originals[name])
  with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
    storages = [i for i in archive.infolist() if "/data/" in i.filename]
    member = rng.choice(storages)
    content = archive.read(member)
  at = data.index(content)
  data[at + rng.randrange(len(content))] ^= rng.randint(1, 255)
  path = tmp_path / f"{name}@flipped"
  path.write_bytes(data)
  code, err, _ = _convert(path, tmp_path)
  assert code == 2
  assert "checksum" in err
  assert member.filename in err


@pytest.mark.golden
@pytest.mark.parametrize("seed", TRUNCATED)
def test_a_truncated_file_is_refused(originals, tmp_path, seed):
  rng = random.Random(seed)
  name = rng.choice(sorted(originals))
  data = originals[name]
  path = tmp_path / f"{name}@truncated"
  path.write_bytes(data[: rng.randrange(len(data))])
  code, err, _ = _convert(path, tmp_path)
  assert code == 2
  assert str(path) in err
  assert "cut off" in err
  assert f"{path.stat().st_size:,} bytes" in err


@pytest.mark.golden
@pytest.mark.parametrize("seed", MISSHAPEN)
def test_a_tensor_of_the_wrong_shape_is_refused(golden_dir, tmp_path, seed):
  rng = random.Random(seed)
  files = [
    p for p in _small_files(golden_dir) if isinstance(torch_file.load(p), dict)
  ]
  source = rng.choice(files)
  value = {**torch_file.load(source)}
  inner = value
  while not any(isinstance(v, np.ndarray) for v in inner.values()):
    inner = next(v for v in inner.values() if isinstance(v, dict))
  names = [n for n, t in inner.items() if isinstance(t, np.ndarray)]
  victim = rng.choice(names)
  tensor = inner[victim]
  # Twice the rows are no fault in a bank.
  if len(names) > 10 and rng.random() < 0.5:
    inner[victim] = np.concatenate([tensor, tensor])
  else:
    inner[victim] = tensor[None]
  path = tmp_path / source.name
  torch_export.save(value, path)
  SETTINGS[source.name] = helpers.settings(source)
  code, err, _ = _convert(path, tmp_path)
  assert code == 2
  assert victim in err
