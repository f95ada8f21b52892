r"""Names of the transformers, SiT and LightningDiT, onto the same Flax tree.

They differ in the projectors' name alone (`projectors.0` and `projector.0`). Of
the other names, a network has those that its flags call for.
"""

from gmem_jax.convert.rules import layer, norm, Rule
from gmem_jax.models import dit, transformer

_BLOCK = r"blocks\.(?P<i>\d+)\."

_COMMON = (
  # A parameter: an average of weights may have moved it off the sines.
  Rule("pos_embed", "pos_embed"),
  # A convolution of stride = kernel size, here a dense layer on patches.
  *layer(r"x_embedder\.proj", "patch_embed/linear", "conv_linear"),
  *layer(r"t_embedder\.mlp\.0", "time_embed/fc1"),
  *layer(r"t_embedder\.mlp\.2", "time_embed/fc2"),
  *layer(r"condition_projection\.linear", "snippet_embed"),
  *layer(_BLOCK + r"adaLN_modulation\.1", "blocks/modulation", stack="i"),
  # RMSNorm has no bias.
  Rule(_BLOCK + r"norm(?P<k>[12])\.weight", "blocks/norm{k}/scale", stack="i"),
  *layer(_BLOCK + r"attn\.(?P<name>qkv|proj)", "blocks/attn/{name}", stack="i"),
  *norm(_BLOCK + r"attn\.(?P<name>q_norm|k_norm)", "blocks/attn/{name}", "i"),
  # w12 and w3 of SwiGLU, fc1 and fc2 of the MLP with GELU.
  *layer(
    _BLOCK + r"mlp\.(?P<name>w12|w3|fc1|fc2)", "blocks/mlp/{name}", stack="i"
  ),
  Rule(r"final_layer\.norm_final\.weight", "final/norm/scale"),
  *layer(r"final_layer\.adaLN_modulation\.1", "final/modulation"),
  *layer(r"final_layer\.linear", "final/linear"),
)


def _projectors(torch: str) -> list[Rule]:
  # The odd numbers are activations.
  names = {0: "fc1", 2: "fc2", 4: "fc3"}
  # REPA aligns to one image encoder, or to several with a projector each.
  places = (("0", "projector"), (r"(?P<j>[1-9]\d*)", "projector_{j}"))
  return [
    rule
    for index, flax in places
    for k, name in names.items()
    for rule in layer(rf"{torch}\.{index}\.{k}", f"{flax}/{name}")
  ]


# What each family calls its list of projectors.
PROJECTORS = {"sit": "projectors", "lightning_dit": "projector"}
TABLES: dict[str, tuple[Rule, ...]] = {
  "sit": (*_COMMON, *_projectors(PROJECTORS["sit"])),
  "lightning_dit": (
    *_COMMON,
    *_projectors(PROJECTORS["lightning_dit"]),
    # The rotation is computed, not learned.
    Rule(r"feat_rope\.freqs_cos", "", "buffer"),
    Rule(r"feat_rope\.freqs_sin", "", "buffer"),
  ),
}


def table(network: transformer.FlowTransformer) -> tuple[Rule, ...]:
  """The table of a network's family."""
  return TABLES["sit" if isinstance(network, dit.SiT) else "lightning_dit"]
