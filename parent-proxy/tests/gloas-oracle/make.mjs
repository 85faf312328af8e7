// Hash tree roots of Gloas objects from an implementation that is not ours: @lodestar/types 1.50.0.
//
//   npm install --ignore-scripts @lodestar/types@1.50.0 @lodestar/params@1.50.0 && node make.mjs > gloas.json
//
// Recorded clients do not send these types yet, so nothing else tells whether our roots are right.
import { ssz } from "@lodestar/types";

let seed = 7;
const byte = () => (seed = (seed * 1103515245 + 12345) % 2147483648) % 256;
const hex = (n) => "0x" + Array.from({ length: n }, () => byte().toString(16).padStart(2, "0")).join("");
const uint = (max = 2 ** 40) => String((byte() * 2 ** 32 + byte() * 65536 + byte()) % max);
const list = (n, make) => Array.from({ length: n }, make);

const payload = (txs, withdrawals) => ({
  parent_hash: hex(32), fee_recipient: hex(20), state_root: hex(32), receipts_root: hex(32), logs_bloom: hex(256),
  prev_randao: hex(32), block_number: uint(), gas_limit: uint(), gas_used: uint(), timestamp: uint(), extra_data: hex(txs % 33),
  base_fee_per_gas: "115792089237316195423570985008687907853269984665640564039457584007913129639" + (845 + txs), block_hash: hex(32),
  transactions: list(txs, () => hex(1 + byte() * 9)),
  withdrawals: list(withdrawals, () => ({ index: uint(), validator_index: uint(), address: hex(20), amount: uint() })),
  blob_gas_used: uint(), excess_blob_gas: uint(), block_access_list: hex(txs * 77), slot_number: uint(1e6),
});
const requests = (n) => ({
  deposits: list(n, () => ({ pubkey: hex(48), withdrawal_credentials: hex(32), amount: uint(), signature: hex(96), index: uint() })),
  withdrawals: list(n, () => ({ source_address: hex(20), validator_pubkey: hex(48), amount: uint() })),
  consolidations: list(n % 3, () => ({ source_address: hex(20), source_pubkey: hex(48), target_pubkey: hex(48) })),
  builder_deposits: list(n, () => ({ pubkey: hex(48), withdrawal_credentials: hex(32), amount: uint(), signature: hex(96) })),
  builder_exits: list(n, () => ({ source_address: hex(20), pubkey: hex(48) })),
});
const bid = (commitments) => ({
  parent_block_hash: hex(32), parent_block_root: hex(32), block_hash: hex(32), prev_randao: hex(32), fee_recipient: hex(20),
  gas_limit: uint(), builder_index: uint(), slot: uint(1e6), value: uint(), execution_payment: uint(),
  blob_kzg_commitments: list(commitments, () => hex(48)), execution_requests_root: hex(32),
});
const objects = [
  ...[0, 1, 5, 6, 21, 22, 90].map((n) => ["EXECUTION_PAYLOAD_BID", "ExecutionPayloadBid", bid(n)]),
  ...[0, 1, 4, 23, 90].map((n) => ["EXECUTION_PAYLOAD_ENVELOPE", "ExecutionPayloadEnvelope", {
    payload: payload(n, n % 17), execution_requests: requests(n % 7), builder_index: uint(), beacon_block_root: hex(32), parent_beacon_block_root: hex(32),
  }]),
  ...[0, 1, 31, 32, 33, 4096].map((n) => ["BUILDER_REQUEST_AUTH", "BuilderRequestAuth", { data: hex(n), slot: uint(1e6) }]),
  ["PROPOSER_PREFERENCES", "ProposerPreferences", { dependent_root: hex(32), proposal_slot: uint(1e6), validator_index: uint(), fee_recipient: hex(20), target_gas_limit: uint() }],
  ["PAYLOAD_ATTESTATION_MESSAGE", "PayloadAttestationData", { beacon_block_root: hex(32), slot: uint(1e6), payload_present: true, blob_data_available: false }],
];
const cases = objects.map(([type, name, data]) => ({
  type, data, root: "0x" + Buffer.from(ssz.gloas[name].hashTreeRoot(ssz.gloas[name].fromJson(data))).toString("hex"),
}));
console.log(JSON.stringify(cases));
