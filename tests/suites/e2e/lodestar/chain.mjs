// A dev chain of Lodestar's: beacon node, validator client, and what their REST API and log say.
import fs from "node:fs";
import net from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { textOf } from "./children.mjs";

/** Both processes and the signer's stack must be up before slot 0. */
const LEAD_SECONDS = 45;
/** Only Lodestar's client of the beacon API has a time limit; that of the external signer has none. */
const OWN_TIMEOUT = /Timeout request/;
/** Of the block that a merged genesis names; the engine takes any. */
const GENESIS_HASH = `0x${"11".repeat(32)}`;

export class Chain {
  /** `merged`: blocks have payloads from the first on; otherwise Lodestar leaves them empty, as before the merge. */
  constructor({ children, modules, folder, preset, slotSeconds, validators, merged }) {
    Object.assign(this, { children, folder, slotSeconds, validators, merged });
    this.program = path.join(modules, "node_modules/.bin/lodestar");
    this.env = { LODESTAR_PRESET: preset, NODE_BACKEND: "js" };
    this.params = Object.entries({
      SECONDS_PER_SLOT: slotSeconds,
      // Exits are allowed from the start.
      SHARD_COMMITTEE_PERIOD: 0,
      ALTAIR_FORK_EPOCH: 0,
      BELLATRIX_FORK_EPOCH: merged ? 0 : 1,
      CAPELLA_FORK_EPOCH: 2,
    }).flatMap(([name, value]) => [`--params.${name}`, String(value)]);
  }

  async startBeacon(engineUrl) {
    const [rest, p2p] = [await freePort(), await freePort()];
    this.url = `http://127.0.0.1:${rest}`;
    const token = path.join(this.folder, "jwt.hex");
    fs.writeFileSync(token, "0".repeat(64));
    this.genesisTime = Math.floor(Date.now() / 1000) + LEAD_SECONDS;
    const options = {
      dataDir: path.join(this.folder, "beacon"),
      genesisValidators: this.validators,
      genesisTime: this.genesisTime,
      "execution.urls": engineUrl,
      "jwt-secret": token,
      eth1: false,
      discv5: false,
      listenAddress: "127.0.0.1",
      port: p2p,
      "rest.address": "127.0.0.1",
      "rest.port": rest,
      "rest.namespace": "*",
      ...(this.merged && { genesisEth1Hash: GENESIS_HASH }),
    };
    this.beacon = this.#lodestar("beacon", ["dev", "--reset", ...this.params, ...flags(options)]);
    while (!(this.genesis = await this.#ask("/eth/v1/beacon/genesis").catch(() => undefined))) {
      this.children.assertRunning();
      if (this.secondsToGenesis() < 0) {
        throw new Error("the beacon node does not answer by its genesis");
      }
      await sleep(200);
    }
    const spec = await this.#ask("/eth/v1/config/spec");
    this.spec = spec;
    this.slotsPerEpoch = Number(spec.SLOTS_PER_EPOCH);
    this.root = this.genesis.genesis_validators_root;
  }

  startValidator(signerUrl, feeRecipient) {
    const options = {
      dataDir: this.clientFolder,
      network: "dev",
      beaconNodes: this.url,
      "externalSigner.url": signerUrl,
      "externalSigner.fetch": true,
      suggestedFeeRecipient: feeRecipient,
    };
    this.client = this.#lodestar("validator", ["validator", ...this.params, ...flags(options)]);
  }

  get clientFolder() {
    return path.join(this.folder, "client");
  }

  /** `validator slashing-protection import` or `export`, on a client's folder. */
  slashingProtection(direction, dataDir, file) {
    const options = { network: "dev", dataDir, beaconNodes: this.url, file };
    const command = ["validator", "slashing-protection", direction, ...flags(options)];
    const name = `slashing-protection-${direction}-${path.basename(file, ".json")}`;
    return this.children.run(name, process.execPath, [this.program, ...command], { env: this.env });
  }

  /** The network, as the signer takes it. */
  networkToml() {
    const { spec } = this;
    const forks = ["phase0", "altair", "bellatrix", "capella"].map((fork) => {
      const name = fork === "phase0" ? "GENESIS" : fork.toUpperCase();
      const epoch = fork === "phase0" ? 0 : spec[`${name}_FORK_EPOCH`];
      return `${fork} = { version = "${spec[`${name}_FORK_VERSION`]}", epoch = ${epoch} }`;
    });
    return [
      'name = "lodestar-dev"',
      `preset = "${spec.PRESET_BASE}"`,
      `genesis_time = ${this.genesis.genesis_time}`,
      `genesis_validators_root = "${this.root}"`,
      `slot_duration_ms = ${Number(spec.SECONDS_PER_SLOT) * 1000}`,
      `slots_per_epoch = ${this.slotsPerEpoch}`,
      "",
      "[forks]",
      ...forks,
      "",
    ].join("\n");
  }

  secondsToGenesis() {
    return this.genesisTime - Date.now() / 1000;
  }

  slotNow() {
    return Math.max(0, Math.floor(-this.secondsToGenesis() / this.slotSeconds));
  }

  epochOf(slot) {
    return Math.floor(slot / this.slotsPerEpoch);
  }

  async state() {
    const [head, checkpoints] = await Promise.all([
      this.#ask("/eth/v1/beacon/headers/head"),
      this.#ask("/eth/v1/beacon/states/head/finality_checkpoints"),
    ]);
    const slot = this.slotNow();
    return {
      slot,
      epoch: this.epochOf(slot),
      head: Number(head.header.message.slot),
      justified: Number(checkpoints.current_justified.epoch),
      finalised: Number(checkpoints.finalized.epoch),
    };
  }

  /** Waits until something holds, for so many slots; says how the chain stands meanwhile. */
  async watch(holds, slots) {
    const until = this.slotNow() + slots;
    let said = 0;
    for (;;) {
      this.children.assertRunning();
      const state = await this.state();
      const over = (await holds(state)) || state.slot >= until;
      if (over || Date.now() - said > 4_000) {
        said = Date.now();
        const { slot, epoch, head, justified, finalised } = state;
        const countdown = this.secondsToGenesis() > 0 ? `, ${Math.ceil(this.secondsToGenesis())} s to genesis` : "";
        console.log(
          `     slot ${slot}, epoch ${epoch}, head ${head}, justified ${justified}, finalised ${finalised}${countdown}`,
        );
      }
      if (over) {
        return state;
      }
      await sleep(500);
    }
  }

  /** Who proposed in each slot; nothing where there is no block. */
  async proposers(from, to) {
    const proposers = new Map();
    for (let slot = from; slot <= to; slot++) {
      const header = await this.#ask(`/eth/v1/beacon/headers/${slot}`);
      proposers.set(slot, header && Number(header.header.message.proposer_index));
    }
    return proposers;
  }

  validatorList() {
    return this.#ask("/eth/v1/beacon/states/head/validators");
  }

  async statusOf(index) {
    return (await this.#ask(`/eth/v1/beacon/states/head/validators/${index}`)).status;
  }

  async forkInfo() {
    return { fork: await this.#ask("/eth/v1/beacon/states/head/fork"), genesis_validators_root: this.root };
  }

  headBlock() {
    return this.#ask("/eth/v2/beacon/blocks/head", (body) => body);
  }

  async postExit(exit) {
    const response = await fetch(`${this.url}/eth/v1/beacon/pool/voluntary_exits`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(exit),
    });
    return { status: response.status, text: await response.text() };
  }

  /** Duties that the client could not do, by its own log. */
  clientErrors() {
    return this.#errors().filter((line) => !OWN_TIMEOUT.test(line));
  }

  /** How often its own beacon node took longer than a slot to answer the client: a machine that stalls, no signer. */
  timeouts() {
    return this.#errors().length - this.clientErrors().length;
  }

  #errors() {
    return textOf(this.client)
      .split("\n")
      .filter((line) => /\berror\b.*Error (signing|proposing|producing|publishing|on .*duties)/i.test(line));
  }

  #lodestar(name, args) {
    return this.children.start(name, process.execPath, [this.program, ...args], { env: this.env });
  }

  /** Nothing where there is nothing; a node that is busy is asked again. */
  async #ask(where, take = (body) => body.data) {
    for (let attempt = 1; ; attempt++) {
      try {
        const response = await fetch(this.url + where, { signal: AbortSignal.timeout(5_000) });
        if (response.status === 404) {
          return undefined;
        }
        if (!response.ok) {
          throw new Error(`${where}: ${response.status} ${await response.text()}`);
        }
        return take(await response.json());
      } catch (error) {
        if (attempt === 3 || !this.genesis) {
          throw error;
        }
        await sleep(300);
      }
    }
  }
}

export function freePort() {
  return new Promise((resolve, reject) => {
    const server = net.createServer().on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

function flags(options) {
  return Object.entries(options).flatMap(([name, value]) => [`--${name}`, String(value)]);
}
