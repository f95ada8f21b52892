r"""Names of the transformers, SiT and LightningDiT, onto the same Flax tree.

They differ in the projector's name alone (`projectors.0` and `projector.0`). Of
the other names, a network has those that its flags call for.
"""

from gmem_jax.convert.rules import Rule
from gmem_jax.models import sit, transformer


def _linear(torch: str, flax: str) -> list[Rule]:
  """Weight and bias of a linear layer."""
  return [
    Rule(rf"{torch}\.weight", f"{flax}/kernel", "linear"),
    Rule(rf"{torch}\.bias", f"{flax}/bias"),
  ]


def _norm(torch: str, flax: str) -> list[Rule]:
  return [
    Rule(rf"{torch}\.weight", f"{flax}/scale"),
    Rule(rf"{torch}\.bias", f"{flax}/bias"),
  ]


def _stacked(layer: list[Rule]) -> list[Rule]:
  """The rules of a layer, for that layer of every block."""
  return [
    Rule(
      rf"blocks\.(?P<i>\d+)\.{rule.torch}",
      f"blocks/{rule.flax}",
      rule.transform,
      stack="i",
    )
    for rule in layer
  ]


_COMMON = (
  # A parameter: an average of weights may have moved it off the sines.
  Rule("pos_embed", "pos_embed"),
  Rule(r"x_embedder\.proj\.weight", "patch_embed/linear/kernel", "conv_linear"),
  Rule(r"x_embedder\.proj\.bias", "patch_embed/linear/bias"),
  *_linear(r"t_embedder\.mlp\.0", "time_embed/fc1"),
  *_linear(r"t_embedder\.mlp\.2", "time_embed/fc2"),
  *_linear(r"condition_projection\.linear", "snippet_embed"),
  *_stacked(_linear(r"adaLN_modulation\.1", "modulation")),
  *_stacked([Rule(r"norm(?P<k>[12])\.weight", "norm{k}/scale")]),
  *_stacked(_linear(r"attn\.(?P<name>qkv|proj)", "attn/{name}")),
  *_stacked(_norm(r"attn\.(?P<name>q_norm|k_norm)", "attn/{name}")),
  *_stacked(_linear(r"mlp\.(?P<name>w12|w3|fc1|fc2)", "mlp/{name}")),
  Rule(r"final_layer\.norm_final\.weight", "final/norm/scale"),
  *_linear(r"final_layer\.adaLN_modulation\.1", "final/modulation"),
  *_linear(r"final_layer\.linear", "final/linear"),
)


def _projector(torch: str) -> list[Rule]:
  return [
    rule
    for index, name in ((0, "fc1"), (2, "fc2"), (4, "fc3"))
    for rule in _linear(rf"{torch}\.{index}", f"projector/{name}")
  ]


SIT: tuple[Rule, ...] = (*_COMMON, *_projector(r"projectors\.0"))
LIGHTNING_DIT: tuple[Rule, ...] = (
  *_COMMON,
  *_projector(r"projector\.0"),
  # The rotation is computed, not learned.
  Rule(r"feat_rope\.freqs_cos", "", "buffer"),
  Rule(r"feat_rope\.freqs_sin", "", "buffer"),
)


def table(network: transformer.FlowTransformer) -> tuple[Rule, ...]:
  """The table of a network's family."""
  return SIT if isinstance(network, sit.SiT) else LIGHTNING_DIT
