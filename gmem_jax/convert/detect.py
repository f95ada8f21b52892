"""Recognises a file by its contents, and takes it out of its wrappings.

The published files wrap a state dict in several ways (a trainer's dict, a
Lightning checkpoint, a release with its bank), and are easily mistaken for one
another. `detect` recognises each by names that only it has, and names the
usual wrong ones.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gmem_jax.convert.names import dinov2, dit, efficientnet, inception, vae
from gmem_jax.convert.read import OpenFile, WrongFile
from gmem_jax.convert.rules import Rule
from gmem_jax.files import shown

StateDict = dict[str, np.ndarray]

# Parts of names that only say what a module was wrapped in: for several devices
# (DDP, FSDP), compiled, or checkpointed; as a whole or block by block.
_WRAPPERS = {
  "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
}  # fmt: skip
# A network's kind is that of the table that takes most of its names: one name
# that decides could be the one that a damaged file lacks.
_TABLES: tuple[tuple[str, Sequence[Rule]], ...] = (
  ("lightning_dit", dit.TABLES["lightning_dit"]),
  ("sit", dit.TABLES["sit"]),
  ("vae", vae.LDM),
  ("vae", vae.diffusers()),
  ("dinov2", dinov2.RULES),
  ("efficientnet_lite0", efficientnet.RULES),
  ("inception", inception.RULES),
)
# A name that only another network has -> what to tell the user.
_WRONG: Mapping[str, str] = {
  # Before its encoder, which is one of those below.
  "trainable_cls_token": (
    "a representation autoencoder (RAE, diffusers' AutoencoderRAE): its latents"
    " are tokens of a vision transformer, and no network here works in them"
  ),
  "_flat_param": (
    "what FSDP saves of a split network, with flattened parameters; save its"
    " full state dict (StateDictType.FULL_STATE_DICT)"
  ),
  "y_embedder.embedding_table.weight": (
    "a label-conditional DiT, SiT or LightningDiT: it has a table of labels,"
    " and no projection of memory snippets as GMem has"
  ),
  "register_tokens": "DINOv2 with registers; GMem uses the one without",
  "embeddings.patch_embeddings.projection.weight": (
    "a vision transformer in the layout of Hugging Face's transformers; take"
    " the original file (dinov2_vitb14_pretrain.pth)"
  ),
  "AuxLogits.conv0.conv.weight": (
    "torchvision's Inception, trained on ImageNet; FID is defined with"
    " pt_inception-2015-12-05-6726825d.pth"
  ),
  "logit_scale": "a CLIP model",
  "model.diffusion_model.input_blocks.0.0.weight": (
    "a Stable Diffusion checkpoint; the autoencoder alone is taken, as a file"
    " of its own (stabilityai/sd-vae-ft-mse)"
  ),
}
_SHARD = {"latents", "representations", "cls_tokens", "labels"}


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a file contains, out of its wrappings.

  Attributes:
    kind: "lightning_dit", "sit", "vae", "dinov2", "efficientnet_lite0",
      "inception", "bank", "low_rank_bank", "latent_stats" or "fid_stats".
    tensors: The state dict, prefixes removed. The bare tensor of a bank is
      called "rows".
    container: Its key in the file, None if it is the whole file.
    weights: "ema" or "model" for a trainer's file, else None.
    step: Training step, if the file or its name tells it.
    config: The configuration that the trainer stored, else empty.
    bank: Bank and frequencies that come with the network, else empty.
    ignored: What is in the file and not converted, in words.
  """

  kind: str
  tensors: StateDict
  container: str | None = None
  weights: str | None = None
  step: int | None = None
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  bank: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ignored: tuple[str, ...] = ()


def detect(source: OpenFile, weights: str | None = None) -> Contents:
  """Recognises what an open file contains.

  Of a trainer's two sets of weights, it takes the one that `weights` names:
  "ema" or "model", by default the averaged ones where there are any.

  Raises:
    WrongFile: Nothing that can be converted; says what it is instead.
  """
  value = source.value
  if isinstance(value, np.ndarray):
    contents = _bare_tensor(value)
  elif not isinstance(value, Mapping):
    raise WrongFile(f"holds a {type(value).__name__}, no weights")
  elif source.format == "npz":
    contents = _statistics(value)
  else:
    contents = _mapping(value, weights, source.path.stem)
  if weights and contents.weights is None:
    raise WrongFile(
      "holds one set of weights, not the two of a trainer's file: leave out"
      f" --weights={weights}"
    )
  return contents


def _bare_tensor(value: np.ndarray) -> Contents:
  floating = jnp.issubdtype(value.dtype, jnp.floating)
  if value.ndim != 2 or not floating or not value.size:
    raise WrongFile(
      f"holds one {value.dtype} tensor of shape {value.shape}; a memory bank"
      " is floating point, [rows, width]"
    )
  return Contents("bank", {"rows": value})


def _statistics(arrays: Mapping[str, np.ndarray | None]) -> Contents:
  if "mu" in arrays and "sigma" in arrays:
    names = [n for n in ("mu", "sigma", "mu_s", "sigma_s") if n in arrays]
    rest = [n for n in arrays if n not in names]
    tensors = {n: arrays[n] for n in names}
    if any(t is None for t in tensors.values()):
      raise WrongFile("holds FID statistics of impossible size")
    note = ("reference images (arr_0)",) if "arr_0" in rest else ()
    other = (f"arrays {shown.some(rest)}",) if rest and not note else ()
    return Contents("fid_stats", tensors, ignored=note + other)  # type: ignore
  if "arr_0" in arrays:
    raise WrongFile(
      "holds a batch of images (arr_0) without statistics; the FID reference"
      " has the arrays mu and sigma"
    )
  raise WrongFile(
    f"is an npz with the arrays {shown.some(arrays)}; a FID reference has mu"
    " and sigma"
  )


def _mapping(
  value: Mapping[Any, Any], weights: str | None, stem: str
) -> Contents:
  if {"C", "M", "S"} <= value.keys():
    places = ("C", "M", "S", "mean")
    names = [n for n in places if isinstance(value.get(n), np.ndarray)]
    tensors = {n: value[n] for n in names}
    rest = {n: v for n, v in value.items() if n not in (*names, "mean")}
    return Contents("low_rank_bank", tensors, config=rest)
  if value.keys() == {"mean", "std"}:
    return Contents("latent_stats", _state_dict(value))
  if value.keys() == {"latents_scale", "latents_bias"}:
    raise WrongFile(
      "holds the latent statistics of an E2E-VAE (REPA-E) in another form; save"
      " {'mean': latents_bias, 'std': 1 / latents_scale} and convert that"
    )
  if isinstance(value.get("network"), Mapping):
    bank = {k: v for k, v in value.items() if k != "network"}
    return _network(value["network"], "network", bank=bank)
  if any(isinstance(value.get(k), Mapping) for k in ("ema", "model")):
    return _trainer(value, weights, stem)
  if isinstance(value.get("state_dict"), Mapping):
    step = value.get("global_step")
    used = ("state_dict", "global_step")
    extras = tuple(str(k) for k in value if k not in used)
    return _network(
      value["state_dict"],
      "state_dict",
      step=step if isinstance(step, int) else None,
      ignored=extras,
    )
  return _network(value, None)


def _trainer(
  value: Mapping[Any, Any], weights: str | None, stem: str
) -> Contents:
  sets = [k for k in ("ema", "model") if isinstance(value.get(k), Mapping)]
  name = weights or sets[0]
  if name not in sets:
    raise WrongFile(f"holds no {name!r} weights, only {' and '.join(sets)!r}")
  config = value.get("config")
  # The trainer stores no step; it names its files by it.
  step = int(stem) if re.fullmatch(r"\d{7}", stem) else None
  return _network(
    value[name],
    name,
    weights=name,
    step=step,
    config=config if isinstance(config, Mapping) else {},
    ignored=tuple(str(k) for k in value if k not in (*sets, "config")),
  )


def _network(value: Any, container: str | None, **fields: Any) -> Contents:
  tensors = _unwrapped(_state_dict(value))
  return Contents(_kind(tensors), tensors, container, **fields)


def _state_dict(value: Any) -> StateDict:
  """Checks that a value maps names to tensors."""
  if not isinstance(value, Mapping) or not value:
    raise WrongFile("holds an empty state dict, or none")
  if {"state", "param_groups"} <= value.keys():
    raise WrongFile("is the state of an optimizer, not weights")
  others = [k for k, v in value.items() if not isinstance(v, np.ndarray)]
  if others or not all(isinstance(k, str) for k in value):
    raise WrongFile(
      f"is no state dict: not every entry is a tensor under a name"
      f" ({shown.some(others or value)})"
    )
  return dict(value)


def _unwrapped(tensors: StateDict) -> StateDict:
  """The tensors under the names that they have without wrappers."""
  plain: dict[str, str] = {}
  for name in tensors:
    parts = (part for part in name.split(".") if part not in _WRAPPERS)
    other = plain.setdefault(".".join(parts), name)
    if other != name:
      raise WrongFile(
        f"holds one tensor under two names, {shown.cut(other)} and"
        f" {shown.cut(name)}"
      )
  return {name: tensors[wrapped] for name, wrapped in plain.items()}


def _kind(tensors: StateDict) -> str:
  if tensors.keys() & {"latents", "latents_flip"} and _SHARD & tensors.keys():
    raise WrongFile(
      "is a shard of encoded training data, not weights; point the data"
      " section of a config at its directory"
    )
  # First: most names of a wrong network may be those of a right one.
  for name, what in _WRONG.items():
    if any(n == name or n.endswith(f".{name}") for n in tensors):
      raise WrongFile(f"is {what}")
  taken, kind = max(
    ((_taken(table, tensors), kind) for kind, table in _TABLES),
    key=lambda pair: pair[0],
  )
  # Half is enough: `identify` then lists what is missing or too much.
  if 2 * taken < len(tensors):
    raise WrongFile(
      f"is a state dict of {len(tensors)} tensors ({shown.some(tensors)}) of no"
      " network that GMem uses"
    )
  return kind


def _taken(table: Sequence[Rule], names: Iterable[str]) -> int:
  """How many names a table takes."""
  patterns = [rule.torch_pattern for rule in table]
  return sum(any(p.fullmatch(name) for p in patterns) for name in names)
