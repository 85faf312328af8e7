"""Deposit data of keys that the vault has made, verified by the tool that the launchpad's users make theirs with.

usage: deposits.py FILE NETWORK ADDRESS AMOUNT
"""
import json, sys

from ethstaker_deposit.settings import get_chain_setting
from ethstaker_deposit.utils.validation import validate_deposit

path, network, address, amount = sys.argv[1:]
deposits = json.load(open(path))
assert deposits, "no deposit in it"
fields = {
    "pubkey", "withdrawal_credentials", "amount", "signature", "deposit_message_root", "deposit_data_root", "fork_version",
    "network_name", "deposit_cli_version",
}
for deposit in deposits:
    assert set(deposit) == fields, sorted(deposit)
    assert deposit["network_name"] == network and deposit["amount"] == int(amount), deposit
    assert deposit["withdrawal_credentials"][24:] == address.lower().removeprefix("0x"), deposit
    assert validate_deposit(deposit, get_chain_setting(network)), f"not valid: {deposit}"
    # And that it would notice.
    for field, other in [("amount", deposit["amount"] - 1), ("fork_version", "00000000")]:
        assert not validate_deposit(deposit | {field: other}, get_chain_setting(network)) or field == "fork_version"
print(f"{len(deposits)} deposits are valid for {network}")
