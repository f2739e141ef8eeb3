"""Is the sum of all accounts the same in every snapshot? Pure."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.history import BankRead, Verdict


def bank(reads: Sequence[BankRead], *, accounts: int, total: int) -> Verdict:
    """Transfers move money and make none: every snapshot has all accounts, none overdrawn, and the same total."""
    if not reads:
        return Verdict("bank", None, "nobody read the balances")
    for read in reads:
        if len(read.balances) != accounts:
            return Verdict("bank", False, f"{read.server} showed {len(read.balances)} of {accounts} accounts")
        if sum(read.balances) != total:
            return Verdict("bank", False, f"{read.server} showed a total of {sum(read.balances)} instead of {total}")
        if min(read.balances) < 0:
            return Verdict("bank", False, f"{read.server} showed an overdrawn account: {min(read.balances)}")
    return Verdict("bank", True, f"{len(reads)} snapshots, each with a total of {total}")
