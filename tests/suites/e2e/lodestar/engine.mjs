// The Engine API as far as a beacon node needs it to produce and import empty payloads, up to Capella. Every payload is
// valid; tokens are not looked at. (Lodestar's own mock stalls at the merge.)
import { createHash } from "node:crypto";
import http from "node:http";

const hex = (number) => `0x${number.toString(16)}`;
const zeros = (bytes) => `0x${"00".repeat(bytes)}`;

export class Engine {
  #numbers = new Map(); // of blocks, by hash
  #payloads = new Map(); // being built, by id

  /** Listens on a free port. */
  async start() {
    this.server = http.createServer((request, response) => this.#answer(request, response));
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
  }

  stop() {
    this.server?.close();
    this.server?.closeAllConnections();
  }

  async #answer(request, response) {
    let body = "";
    for await (const part of request.setEncoding("utf8")) {
      body += part;
    }
    const calls = JSON.parse(body);
    const answers = [calls]
      .flat()
      .map(({ id, method, params }) => ({ jsonrpc: "2.0", id, ...this.#call(method, params) }));
    response.setHeader("Content-Type", "application/json");
    response.end(JSON.stringify(Array.isArray(calls) ? answers : answers[0]));
  }

  #call(method, params = []) {
    const [, name, version] = /^engine_(\w+)V(\d)$/.exec(method) ?? [];
    switch (name) {
      case "newPayload":
        return { result: this.#take(params[0]) };
      case "forkchoiceUpdated":
        return { result: this.#choose(...params) };
      case "getPayload": {
        const payload = this.#payloads.get(params[0]);
        if (!payload) {
          return { error: { code: -38001, message: "unknown payload" } };
        }
        return { result: version === "1" ? payload : { executionPayload: payload, blockValue: "0x0" } };
      }
      default:
        return { error: { code: -32601, message: `${method}: not here` } };
    }
  }

  #take({ blockHash, blockNumber }) {
    this.#numbers.set(blockHash, Number(blockNumber));
    return { status: "VALID", latestValidHash: blockHash, validationError: null };
  }

  #choose({ headBlockHash }, attributes) {
    let payloadId = null;
    if (attributes) {
      payloadId = `0x${(this.#payloads.size + 1).toString(16).padStart(16, "0")}`;
      this.#payloads.set(payloadId, this.#build(headBlockHash, attributes));
    }
    return { payloadStatus: { status: "VALID", latestValidHash: headBlockHash, validationError: null }, payloadId };
  }

  #build(parentHash, { timestamp, prevRandao, suggestedFeeRecipient, withdrawals }) {
    const number = (this.#numbers.get(parentHash) ?? 0) + 1;
    const identity = parentHash + timestamp + prevRandao + suggestedFeeRecipient;
    const blockHash = `0x${createHash("sha256").update(identity).digest("hex")}`;
    this.#numbers.set(blockHash, number);
    return {
      parentHash,
      feeRecipient: suggestedFeeRecipient,
      stateRoot: zeros(32),
      receiptsRoot: zeros(32),
      logsBloom: zeros(256),
      prevRandao,
      blockNumber: hex(number),
      gasLimit: hex(30_000_000),
      gasUsed: hex(0),
      timestamp,
      extraData: "0x",
      baseFeePerGas: hex(1_000_000_000),
      blockHash,
      transactions: [],
      ...(withdrawals && { withdrawals }),
    };
  }
}
