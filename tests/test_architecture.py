"""The directions of imports, and the rules that a reviewer cannot see."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "gmem_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Layers, top first. A module imports from its own layer or from a lower one.
LAYERS = (
  ("main", "bank.__main__", "evaluate.__main__"),
  (
    "modes",
    "photos",
    "prepare_mode",
    "compile_mode",
    "sample_mode",
    "sample_plan",
    "bank_cli",
    "bank_commands",
    "bank_features",
    "bank_sheet",
    "sample_source",
    "manipulate",
    "report",
    "convert",
    "bench",
    "evaluate",
    "compile_cache",
  ),
  (
    "abstract",
    "train",
    "sample",
    "assemble",
    "pretrained",
    "pretrained_encoders",
    "pretrained_files",
    "init_from",
    "run_directory",
    "run_sampling",
    "training_data",
    "aot",
  ),
  (
    "bank_store",
    "checkpoint",
    "checkpoint_part",
    "files",
    "data",
    "metrics",
    "clock",
    "images",
    "config",
    "sections",
    "strict",
    "weights",
    # The reader of PyTorch's files, which knows nothing of networks.
    "convert.torch_file",
    "convert.torch_legacy",
    "convert.inert_pickle",
    "convert.torch_types",
  ),
  ("distributed", "jobs", "peers", "stop_vote", "digest"),
  (
    "batch",
    "train_step",
    "train_state",
    "retrieval",
    "bank_placement",
    "sharding",
    "optim",
  ),
  ("diffusion", "bank", "models", "encoders"),
  ("kernels", "rngs", "huge_pages"),
)
PURE = {
  "rngs", "bank_placement", "sharding", "train_state", "train_step", "batch",
  "optim", "retrieval",
  "models", "encoders", "diffusion", "bank", "kernels",
}  # fmt: skip
# Command lines and stores inside pure packages, at the edge by design.
EDGES = {"bank.__main__"}
PURE_IMPORTS = {
  "jax", "numpy", "optax", "einops", "flax", "jaxtyping", "ml_dtypes", "scipy",
  "gmem_jax",
}  # fmt: skip
NEVER = {"torch", "tensorflow", "transformers", "diffusers"}


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(p for p in parts if p != "__init__")


def imports(path: pathlib.Path) -> set[str]:
  """Dotted names of all that a file imports, at its top or inside."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def layer_of(name: str) -> int:
  # The longest prefix that stands in a layer decides.
  parts = name.split(".")
  for end in range(len(parts), 0, -1):
    for i, layer in enumerate(LAYERS):
      if ".".join(parts[:end]) in layer:
        return i
  raise AssertionError(f"gmem_jax.{name} stands in no layer of {__file__}")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path):
  name = module_name(path)
  if not name:
    return
  for imported in imports(path):
    parts = imported.split(".")
    if parts[0] != "gmem_jax" or len(parts) < 2:
      continue
    target = ".".join(parts[1:])
    if target in ("__version__",):
      continue
    assert layer_of(target) >= layer_of(name), f"{name} imports {target}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_pure_core_imports_only_the_numerical_libraries(path):
  name = module_name(path)
  heads = {i.split(".")[0] for i in imports(path)}
  assert not heads & NEVER, f"{name} imports {heads & NEVER}"
  if name.split(".")[0] not in PURE or name in EDGES:
    return
  import sys

  foreign = heads - PURE_IMPORTS - set(sys.stdlib_module_names)
  assert not foreign, f"{name} imports {foreign}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_star_imports_and_no_old_keys(path):
  text = path.read_text()
  assert not re.search(r"^from .* import \*", text, re.MULTILINE)
  assert "PRNGKey" not in text, "use jax.random.key"
  assert not re.search(r"\b(config|cfg|c)\.get\(", text), (
    "a default hidden in code: configs are complete"
  )
  if module_name(path) != "rngs":
    assert not re.search(r"random\.key\(", text), "rngs.py makes the keys"


def test_files_are_small():
  for path in FILES:
    lines = len(path.read_text().splitlines())
    assert lines <= 350, f"{path.name} has {lines} lines; split it"


def test_configs_are_complete_and_resolve():
  import importlib.util

  from gmem_jax.config import resolve as config_lib

  files = sorted((ROOT / "configs").glob("*.py"))
  assert files
  for path in files:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = getattr(module, "OPTIONS", None)
    for arguments in [(o,) for o in options] if options else [()]:
      tree = module.get_config(*arguments)
      resolved = config_lib.resolve(tree)
      assert config_lib.flatten(config_lib.to_json(resolved)).keys() == (
        config_lib.flatten(tree.to_dict()).keys()
      )
    assert "python -m gmem_jax.main" in module.__doc__
