"""python -m gmem_jax.bank: see `gmem_jax.commands.bank`."""

import sys

from gmem_jax.commands import bank as bank_command

if __name__ == "__main__":
  sys.exit(bank_command.main())
