"""The directions of imports, and the rules that a reviewer cannot see."""

import re

import pytest

from gmem_jax.config import resolve
from tests import layout

ROOT, FILES = layout.ROOT, layout.FILES
module_name, imports = layout.module_name, layout.imports

# Packages and modules of the top level, highest first; those of one floor do
# not know each other. A package imports from lower floors only.
ORDER = "main bench studio | commands | sample evaluate | train | data convert | models | bank | config | diffusion parallel files aot | rngs progress"  # noqa: E501
# The method itself: pure functions of arrays, without files, clocks or flags.
PURE = {
  "rngs", "diffusion", "models", "bank", "train.step", "train.state",
  "train.optimizer", "parallel.sharding",
}  # fmt: skip
# Entry points and files inside pure packages, at the edge by design.
EDGES = {"bank.__main__", "bank.files"}
PURE_IMPORTS = {
  "jax", "numpy", "optax", "einops", "flax", "jaxtyping", "ml_dtypes", "scipy",
  "gmem_jax",
}  # fmt: skip
NEVER = {"torch", "tensorflow", "transformers", "diffusers"}


def test_packages_import_downward_only():
  floors = [floor.split() for floor in ORDER.split("|")]
  height = {name: -i for i, floor in enumerate(floors) for name in floor}
  graph = layout.package_graph()
  assert not graph.keys() - height.keys(), "a package stands on no floor"
  wrong = [
    line
    for name, below in graph.items()
    for other, lines in below.items()
    if height[other] >= height[name]
    for line in lines
  ]
  assert not wrong, "upward or sideways: " + ", ".join(wrong)


def test_no_circle_and_few_floors():
  layout.floors(layout.module_graph())
  packages = {
    name: set(below) for name, below in layout.package_graph().items()
  }
  assert max(layout.floors(packages).values()) < 9


def test_a_circle_is_named():
  with pytest.raises(ValueError, match="a -> b -> a"):
    layout.floors({"a": {"b"}, "b": {"a"}})


def test_the_top_level_can_be_held_in_the_head():
  no_code = ("__pycache__", "py.typed")
  entries = [p for p in layout.PACKAGE.iterdir() if p.name not in no_code]
  assert len(entries) <= 20


def test_public_classes_have_one_name_each():
  doubled = {
    name: modules
    for name, modules in layout.classes().items()
    if len(modules) > 1
  }
  assert not doubled


def test_tests_mirror_the_package():
  inside = {p.relative_to(layout.PACKAGE) for p in layout.PACKAGE.glob("**/")}
  ours = {"fuzz", "golden", "launch", "without_torch"}
  for folder in (ROOT / "tests").glob("**/"):
    relative = folder.relative_to(ROOT / "tests")
    if not ours & set(relative.parts) and "__pycache__" not in relative.parts:
      assert relative in inside, f"tests/{relative} mirrors no package"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_pure_core_imports_only_the_numerical_libraries(path):
  name = module_name(path)
  heads = {i.split(".")[0] for i in imports(path)}
  assert not heads & NEVER, f"{name} imports {heads & NEVER}"
  parents = {name.rsplit(".", n)[0] for n in range(name.count(".") + 1)}
  if not parents & PURE or name in EDGES:
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

  files = sorted((ROOT / "configs").glob("*.py"))
  assert files
  for path in files:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = getattr(module, "OPTIONS", None)
    for arguments in [(o,) for o in options] if options else [()]:
      tree = module.get_config(*arguments)
      resolved = resolve.resolve(tree)
      assert resolve.flatten(resolve.to_json(resolved)).keys() == (
        resolve.flatten(tree.to_dict()).keys()
      )
    assert "python -m gmem_jax.main" in module.__doc__
