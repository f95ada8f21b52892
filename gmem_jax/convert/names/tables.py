"""Names of the published files that are no networks: banks and statistics."""

from gmem_jax.convert.rules import Rule

# A bare tensor, called "rows" for want of a name.
BANK = (Rule("rows", "rows"),)
# A row is coefficients[i] @ basis.T + mean; singular_values serve to project
# new rows.
LOW_RANK_BANK = (
  Rule("C", "coefficients"),
  Rule("M", "basis"),
  Rule("S", "singular_values"),
  Rule("mean", "mean"),
)
LATENT_STATS = (
  Rule("mean", "mean", "per_channel"),
  Rule("std", "std", "per_channel"),
)
FID_STATS = (
  Rule("mu", "mu"),
  Rule("sigma", "sigma"),
  # Of the spatial features (sFID), in the reference files of the ADM suite.
  Rule("mu_s", "mu_s"),
  Rule("sigma_s", "sigma_s"),
)
