"""python -m gmem_jax.bank: see `gmem_jax.bank_cli`."""

import sys

from gmem_jax import bank_cli

if __name__ == "__main__":
  sys.exit(bank_cli.main())
