// Processes that this suite starts, each with a log of its own. Whatever happens, they end with it.
import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

// eslint-disable-next-line no-control-regex
const COLOURS = /\x1b\[[0-9;]*m/g;

export class Children {
  #all = [];
  #over = false;

  constructor(folder) {
    this.folder = folder;
    // The last resort: Node ends without having awaited anything.
    process.on("exit", () => this.#running().forEach((child) => child.process.kill("SIGKILL")));
  }

  /** Starts one. `patience`: how long it may take to end once it is told to. */
  start(name, program, args, { env = {}, patience = 5_000, serves = true } = {}) {
    if (this.#over) {
      throw new Error(`${name} is not started any more`);
    }
    const log = path.join(this.folder, `${name}.log`);
    const out = fs.openSync(log, "w");
    const child = { name, log, patience, serves, ended: undefined };
    child.process = spawn(program, args, {
      cwd: this.folder,
      stdio: ["ignore", out, out],
      env: { ...process.env, ...env },
    });
    fs.closeSync(out);
    child.end = new Promise((resolve) => {
      const over = (how) => {
        child.ended ??= how;
        resolve(child.ended);
      };
      child.process.on("error", (error) => over(error.message));
      child.process.on("exit", (code, signal) => over(code ?? signal));
    });
    this.#all.push(child);
    return child;
  }

  /** Runs one to its end: its exit code (or the signal that ended it), and what it said. */
  async run(name, program, args, { env, seconds = 60 } = {}) {
    const child = this.start(name, program, args, { env, serves: false });
    const over = await within(seconds * 1000, child.end);
    if (over === undefined) {
      await this.stop(child);
    }
    return { code: over ?? `no end within ${seconds} s`, text: textOf(child) };
  }

  /** Throws where one that should run has ended: without it, whatever is waited for does not come. */
  assertRunning() {
    const gone = this.#all.find((child) => child.serves && child.ended !== undefined);
    if (gone) {
      throw new Error(`${gone.name} has ended (${gone.ended}):\n${lastLines(gone)}`);
    }
  }

  async stop(child) {
    child.serves = false;
    if (child.ended === undefined) {
      child.process.kill("SIGTERM");
      // Lodestar's beacon passes over SIGTERM.
      if ((await within(child.patience, child.end)) === undefined) {
        child.process.kill("SIGKILL");
        await child.end;
      }
    }
    return child.ended;
  }

  /** Ends all, the last first, and starts none any more. */
  async stopAll() {
    this.#over = true;
    for (const child of this.#running().reverse()) {
      await this.stop(child);
    }
  }

  #running() {
    return this.#all.filter((child) => child.ended === undefined);
  }
}

export function textOf(child) {
  return fs.readFileSync(child.log, "utf8").replace(COLOURS, "");
}

export function lastLines(child, count = 12) {
  const lines = textOf(child).trimEnd().split("\n").slice(-count);
  return lines.map((line) => `     ${child.name}: ${line.slice(0, 240)}`).join("\n");
}

/** What a promise comes to, or nothing where it takes too long. */
async function within(ms, promise) {
  const stop = new AbortController();
  const timer = sleep(ms, undefined, { signal: stop.signal }).catch(() => undefined);
  const result = await Promise.race([promise, timer]);
  stop.abort();
  return result;
}
