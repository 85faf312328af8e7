// The signer's whole stack as `casemate-dev` runs it, its operator's commands, and its API.
import fs from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { freePort } from "./chain.mjs";
import { textOf } from "./children.mjs";

/** The stack ends its parts in order, and has half a minute for it. */
const PATIENCE_MS = 45_000;
const START_SECONDS = 60;

export class Signer {
  /** `without`: what a program that is older than this suite does not have. */
  constructor({ children, dev, casemate, folder, enclaves, without }) {
    Object.assign(this, { children, dev, casemate, enclaves, without });
    this.folder = path.join(folder, "signer");
    this.log = path.join(folder, "signing-log");
    // The proxy makes it.
    this.tokenFile = path.join(folder, "key-manager-token");
    this.files = folder;
  }

  async start({ network, root, keys, policy }) {
    const file = (name, text) => {
      const place = path.join(this.files, name);
      fs.writeFileSync(place, text, { mode: 0o600 });
      return place;
    };
    const address = `127.0.0.1:${await freePort()}`;
    const options = ["--network", file("network.toml", network), "--interop-keys", String(keys), "--listen", address];
    options.push("--verbose-banner", "--data-dir", this.folder, "--enclaves", String(this.enclaves), "--fence", "file");
    if (!this.without.has("policy")) {
      options.push("--policy", file("policy.toml", policy));
    }
    options.push("--", "--log-level", "info");
    if (!this.without.has("log")) {
      options.push("--signing-log", this.log);
    }
    if (!this.without.has("key-manager")) {
      options.push("--key-manager-token-file", this.tokenFile);
    }
    this.url = `http://${address}`;
    const of = path.join(this.folder, root);
    this.pins = ["--root", path.join(of, "nsm/root.pem"), "--measurements", path.join(of, "nsm/measurements.json")];
    this.operator = [...this.pins, "--operator-key", path.join(of, "operator.pem")];
    this.stack = this.children.start("casemate-dev", this.dev, options, { patience: PATIENCE_MS });
    await until("the signer's stack", START_SECONDS, () => {
      this.children.assertRunning();
      return textOf(this.stack).includes("Ctrl-C ends it.");
    });
    this.vaults = [...textOf(this.stack).matchAll(/^ +vault +pid (\d+)/gm)].map(([, pid]) => Number(pid));
  }

  stop() {
    return this.children.stop(this.stack);
  }

  async publicKeys() {
    return (await fetch(`${this.url}/api/v1/eth2/publicKeys`)).json();
  }

  /** The keys by the key manager API, or the status of its refusal. */
  async keystores(headers) {
    const response = await fetch(`${this.url}/eth/v1/keystores`, { headers });
    return response.ok ? (await response.json()).data.map((one) => one.validating_pubkey) : response.status;
  }

  async sign(key, body) {
    const response = await fetch(`${this.url}/api/v1/eth2/sign/${key}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(body),
    });
    return { status: response.status, ...(await response.json()) };
  }

  /** Which enclave holds the fence, and what each is to it. */
  async fence() {
    const { checks } = await (await fetch(`${this.url}/healthcheck`)).json();
    return checks.find(({ id }) => id === "fence").data;
  }

  /** Waits until one enclave holds the fence and all the others stand by: its number. */
  async settled(seconds) {
    let fence;
    await until("a holder, and standbys", seconds, async () => {
      fence = await this.fence();
      const standby = (standing, number) => number === fence.holder || standing === "standby";
      return fence.holder !== null && fence.enclaves.every(standby);
    });
    return fence.holder;
  }

  /** Waits for it: its number. */
  async heldByAnotherThan(before, seconds, meanwhile = () => {}) {
    let holder;
    await until(`another holder of the fence than enclave ${before}`, seconds, async () => {
      meanwhile();
      ({ holder } = await this.fence());
      return holder !== null && holder !== before;
    });
    return holder;
  }

  /** Process ids of the vaults that run now: one that has died runs again as another process. */
  vaultsNow() {
    const read = (...parts) => {
      try {
        return fs.readFileSync(path.join("/proc", ...parts), "utf8");
      } catch {
        return "";
      }
    };
    const parent = (pid) => Number(read(pid, "stat").split(")").pop().trim().split(" ")[1]);
    const ours = (pid) => parent(pid) === this.stack.process.pid && read(pid, "cmdline").startsWith("casemate-vault");
    return fs
      .readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name) && ours(name))
      .map(Number);
  }

  /** An operator's command. */
  command(name, ...args) {
    return this.children.run(name, this.casemate, args);
  }
}

async function until(what, seconds, holds) {
  const deadline = Date.now() + seconds * 1000;
  while (!(await holds())) {
    if (Date.now() > deadline) {
      throw new Error(`waited ${seconds} s in vain for ${what}`);
    }
    await sleep(100);
  }
}
