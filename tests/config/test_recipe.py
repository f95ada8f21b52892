"""Recipes that are not there, do not run, or refuse their option."""

import pathlib
import re

import pytest

from gmem_jax.config import recipe

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "digits.py"


def test_a_recipe_is_found_by_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert recipe.load("digits") == recipe.load(str(DIGITS))
  assert recipe.load("digits:cross").model.conditioning == "cross"
  # A file of the name in this directory comes first.
  (tmp_path / "digits").write_text("x = 1")
  with pytest.raises(ValueError, match="it defines no get_config"):
    recipe.load("digits")


def test_an_option_reaches_the_recipe():
  assert recipe.load(str(DIGITS)).model.conditioning == "adaln"
  assert recipe.load(f"{DIGITS}:cross").model.conditioning == "cross"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "configs/digit.py",
      f"there is no such file in {ROOT}; did you mean configs/digits.py?",
    ),
    (
      "xl",
      f"there is no such file in {ROOT}; by name there are "
      + ", ".join(recipe.names()),
    ),
    (
      "digits.py",
      f"there is no such file in {ROOT}; did you mean {DIGITS}?",
    ),
    (
      "digit",
      f"there is no such file in {ROOT}; did you mean digits?",
    ),
    ("/nowhere/a.py", "there is no such file"),
    ("configs", "a file is needed, not a directory"),
    ("", "a file is needed, not a directory"),
    (
      f"{DIGITS}:nonsense",
      "option 'nonsense': allowed are ('cross', 'adaln+cross')"
      f" ({DIGITS}, line 27)",
    ),
  ],
)
def test_a_wrong_name_is_one_line_with_the_right_one(
  text, message, monkeypatch
):
  monkeypatch.chdir(ROOT)
  with pytest.raises(ValueError, match="--config=") as caught:
    recipe.load(text)
  assert str(caught.value) == f"--config={text}: {message}"


def test_the_wrong_directory_is_named_and_the_file_found(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  message = f"no such file in {tmp_path}; did you mean {DIGITS}?"
  with pytest.raises(ValueError, match=re.escape(message)):
    recipe.load("configs/digits.py")


BROKEN = {
  "def get_config(:": "SyntaxError: invalid syntax (FILE, line 1)",
  "\nimport nothing_such":
    "ModuleNotFoundError: No module named 'nothing_such' (FILE, line 2)",
  "def get_config():\n  return {}['a']": "KeyError: 'a' (FILE, line 2)",
  "def get_config():\n  raise SystemExit(3)": "SystemExit: 3 (FILE, line 2)",
  "x = 1": "it defines no get_config()",
  "def get_config():\n  return dict(seed=0)":
    "get_config() must return a ConfigDict, not dict",
  "\0": "SyntaxError: source code string cannot contain null bytes",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_a_recipe_that_does_not_run_names_its_line(text, tmp_path):
  path = tmp_path / "own.py"
  path.write_text(text)
  with pytest.raises(ValueError, match="--config=") as caught:
    recipe.load(str(path))
  message = BROKEN[text].replace("FILE", str(path))
  assert str(caught.value) == f"--config={path}: {message}"
