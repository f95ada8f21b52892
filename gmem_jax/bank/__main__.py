"""python -m gmem_jax.bank: see `gmem_jax.commands.bank`."""

import sys

from gmem_jax.commands import bank as bank_command, interrupt

if __name__ == "__main__":
  sys.exit(interrupt.run(bank_command.main))
