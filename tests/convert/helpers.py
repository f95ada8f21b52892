"""What several test modules of the converter share."""

import contextlib
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from gmem_jax.convert import __main__ as cli


def golden_files(golden_dir: pathlib.Path) -> list[pathlib.Path]:
  """Every PyTorch file among the goldens; there must be some."""
  files = sorted(golden_dir.rglob("*.pt")) + sorted(golden_dir.rglob("*.pth"))
  assert files, f"no .pt or .pth file in {golden_dir}"
  return files


def configuration(path: pathlib.Path) -> dict[str, Any]:
  """What the published code was run with, as stored beside a golden file."""
  # A trainer's file has one file of numbers for each of its two sets.
  stem = path.stem.removesuffix("_train")
  for name in (stem, f"{stem}_ema"):
    numbers = path.with_name(f"{name}.npz")
    if numbers.exists():
      with np.load(numbers) as data:
        return json.loads(str(data["config"])) if "config" in data else {}
  return {}


def settings(path: pathlib.Path) -> list[str]:
  """--model options from the configuration stored beside a golden file."""
  config = configuration(path)
  names = ("num_groups",)
  if "num_heads" in config:
    names = ("num_heads", "encoder_depth")
  given = [f"{name}={config[name]}" for name in names if name in config]
  return ["--model", *given] if given else []


def run(*arguments: Any) -> tuple[int, str, str]:
  """Exit code, standard output and error of the command line, in-process."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = cli.main([str(argument) for argument in arguments])
  return code, out.getvalue(), err.getvalue()


def converted_part(value: Any, weights: str = "ema") -> Any:
  """What of a published file comes back from --to-torch."""
  if isinstance(value, Mapping) and {"ema", "model"} <= value.keys():
    state_dict = value[weights]
    return {n.removeprefix("module."): t for n, t in state_dict.items()}
  if isinstance(value, Mapping) and "state_dict" in value:
    parts = ("encoder", "decoder", "quant_conv", "post_quant_conv")
    state_dict = value["state_dict"].items()
    kept = {n: t for n, t in state_dict if n.split(".")[0] in parts}
    return {"state_dict": kept}
  return value


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
  """Same containers, same names in the same order, same bits."""
  if isinstance(theirs, np.ndarray):
    assert isinstance(ours, np.ndarray), where
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), where
    assert ours.tobytes() == theirs.tobytes(), where
  elif isinstance(theirs, Mapping):
    assert list(ours) == list(theirs), where
    for key in theirs:
      assert_same(ours[key], theirs[key], f"{where}/{key}")
  elif isinstance(theirs, (list, tuple)):
    assert (type(ours), len(ours)) == (type(theirs), len(theirs)), where
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
      assert_same(a, b, f"{where}/{k}")
  else:
    assert (type(ours), ours) == (type(theirs), theirs), where


def zip_with_pickle(
  path: pathlib.Path,
  program: bytes,
  storages: Mapping[str, bytes] | None = None,
) -> pathlib.Path:
  """A file in PyTorch's format around any pickle; its checksums are right."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", program)
    for key, data in (storages or {}).items():
      archive.writestr(f"archive/data/{key}", data)
    archive.writestr("archive/version", b"3\n")
  return path


def metadata(kind: str) -> dict[str, Any]:
  """The least that converted weights say of themselves."""
  return {
    "kind": kind,
    "title": f"a {kind}",
    "weights": None,
    "step": None,
    "source": {"file": "f", "sha256": "0" * 64},
  }
