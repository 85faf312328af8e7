// A real Lodestar validator client finalises a dev chain through Casemate, while enclaves die and hand over.
//
//   node run.mjs --modules DIR --dev casemate-dev --casemate casemate [OPTIONS]
//
// DIR is what ./install has filled. Node 18 or newer, and nothing else. Options:
//
//   --preset minimal|mainnet    minimal unless told: epochs of 8 slots, not 32
//   --slot-seconds N            2 with minimal, 1 with mainnet
//   --merged                    payloads in the blocks from genesis on, and no Altair
//   --work DIR                  where everything is kept: an empty folder
//   --sabotage attestations|blocks|signatures
//                               spoil what goes between client and signer: must fail
//   --self-test                 all three: passes only if each is noticed
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";

import { Chain } from "./chain.mjs";
import { Children, lastLines } from "./children.mjs";
import { Engine } from "./engine.mjs";
import * as judge from "./judge.mjs";
import { SABOTAGES, Saboteur } from "./saboteur.mjs";
import { Signer } from "./signer.mjs";

const VALIDATORS = 64;
const FEE_RECIPIENT = `0x${"0".repeat(38)}fe`;
const POLICY = `voluntary_exits = false\nfee_recipient = "${FEE_RECIPIENT}"\n`;
/** Lodestar finalises epoch 2 with the first block of epoch 4; this is the first of Capella. */
const FINALISED = 2;
/** The validator that leaves, and one that may not. */
const [LEAVES, STAYS] = [5, 6];
/** How often the client's own beacon node may be late, on a machine that stalls. */
const TIMEOUTS = 8;

/** Counts what holds and what does not. */
class Tally {
  passed = 0;
  failed = [];
  skipped = 0;
  interrupted = false;

  constructor(about = "") {
    this.about = about;
  }

  /** `wrong`: what is wrong, a list; or whether all is well. */
  check(name, what, wrong) {
    const list = typeof wrong === "boolean" ? (wrong ? [] : [""]) : wrong;
    const [first, ...more] = list;
    console.log(`${this.about}${list.length === 0 ? "ok  " : "FAIL"} ${what}${first ? `: ${first}` : ""}`);
    more.slice(0, 4).forEach((line) => console.log(`     ${line}`));
    if (list.length === 0) {
      this.passed += 1;
    } else {
      this.failed.push(name);
    }
  }

  skip(what) {
    console.log(`skip ${what}`);
    this.skipped += 1;
  }
}

/** Everything that runs, in one folder. */
class Bench {
  constructor(options, { sabotage, enclaves, folder }) {
    fs.mkdirSync(folder, { recursive: true });
    const children = new Children(folder);
    const { preset, modules, dev, casemate, slotSeconds, merged, without } = options;
    Object.assign(this, { children, folder, sabotage, engine: new Engine() });
    this.chain = new Chain({ children, modules, folder, preset, slotSeconds, merged, validators: VALIDATORS });
    this.signer = new Signer({ children, dev, casemate, folder, enclaves, without });
  }

  async start(tally) {
    const { chain, signer } = this;
    await this.engine.start();
    await chain.startBeacon(this.engine.url);
    await signer.start({ network: chain.networkToml(), root: chain.root, keys: VALIDATORS, policy: POLICY });
    const listed = new Set(await signer.publicKeys());
    const all = (await chain.validatorList()).map(({ validator }) => validator.pubkey);
    tally.check(
      "keys",
      `the signer lists the chain's ${VALIDATORS} keys`,
      listed.size === VALIDATORS && all.every((key) => listed.has(key)),
    );
    if (this.sabotage) {
      this.saboteur = new Saboteur(signer.url, this.sabotage);
      await this.saboteur.start();
    }
    chain.startValidator(this.saboteur?.url ?? signer.url, FEE_RECIPIENT);
    tally.check(
      "start",
      `all runs ${chain.secondsToGenesis().toFixed(1)} s before genesis`,
      chain.secondsToGenesis() > 0,
    );
  }

  async stop() {
    await this.children.stopAll();
    this.engine.stop();
    this.saboteur?.stop();
  }
}

/** The chain finalises, with a block in nearly every slot. */
async function finalises(tally, { chain }) {
  const epochs = FINALISED + 3;
  const slots = epochs * chain.slotsPerEpoch;
  const allowed = Math.ceil(slots / 16);
  const { slot, finalised } = await chain.watch(({ slot, epoch, head, justified, finalised }) => {
    // What cannot come any more is not waited for.
    const noBlocks = slot - head > allowed + 1;
    const noVotes = epoch >= epochs - 1 && slot % chain.slotsPerEpoch > 2 && justified < FINALISED;
    return finalised >= FINALISED || noBlocks || noVotes;
  }, slots);
  tally.check("finality", `epoch ${finalised} finalised in slot ${slot}`, judge.finality(finalised, FINALISED));
  // The block of the slot that runs may be on its way.
  const proposers = await chain.proposers(1, slot - 1);
  const missed = judge.missedSlots(proposers).length;
  tally.check("blocks", `${missed} of ${slot - 1} slots without a block`, judge.blocks(proposers, allowed));
  return { proposers, allowed, finalised };
}

async function isHealthy(tally, { chain }) {
  const head = await chain.headBlock();
  tally.check("fork", `the head is a block of ${head.version}`, head.version === "capella");
  if (chain.merged) {
    const recipient = head.data.message.body.execution_payload.fee_recipient;
    tally.check("fee recipient", `it pays ${recipient}`, recipient === FEE_RECIPIENT);
  }
  const list = await chain.validatorList();
  tally.check("validators", "all validators are active, none is slashed", judge.validators(list, VALIDATORS));
  const errors = chain.clientErrors();
  tally.check("client", `the client missed ${errors.length} duties, by its log`, errors.slice(0, 5));
  const timeouts = chain.timeouts();
  tally.check("client", `its own beacon node was late ${timeouts} times`, timeouts <= TIMEOUTS);
  return list;
}

/** The checks notice what they are for: over what was recorded, with one thing spoilt. */
function controls(tally, { proposers, allowed, finalised, list }) {
  const gaps = new Map([...proposers].map(([slot, proposer]) => [slot, slot % 4 === 0 ? undefined : proposer]));
  const slashed = list.map((one, i) => (i === 3 ? { ...one, validator: { ...one.validator, slashed: true } } : one));
  const noticed = [
    judge.blocks(gaps, allowed).length === 1,
    judge.finality(finalised - 1, finalised).length === 1,
    judge.validators(slashed, VALIDATORS).length === 1,
    judge.validators(list.slice(1), VALIDATORS).length === 1,
  ];
  tally.check("controls", "the checks notice gaps, a halt, a slashed and a missing validator", noticed.every(Boolean));
}

async function servesKeyManager(tally, { signer }, keys) {
  if (signer.without.has("key-manager")) {
    return tally.skip("the key manager API");
  }
  const token = fs.readFileSync(signer.tokenFile, "utf8").trim();
  const listed = await signer.keystores({ Authorization: `Bearer ${token}` });
  const same = Array.isArray(listed) && [...listed].sort().join() === [...keys].sort().join();
  tally.check("key manager", `the key manager API lists the ${VALIDATORS} keys`, same);
  const status = await signer.keystores({});
  tally.check("key manager", `and answers nobody without its token (${status})`, status === 401);
}

/** kill -9 of the vault that holds the fence: the standby goes on. */
async function survivesKill(tally, { chain, signer }) {
  const holder = await signer.settled(30);
  const [alive, begun, slot] = [signer.vaultsNow(), Date.now(), chain.slotNow()];
  const victim = signer.vaults[holder];
  console.log(`     kill -9 of process ${victim}, the vault of enclave ${holder}, in slot ${slot}`);
  killed(victim);
  const finalised = chain.epochOf(slot) + 1;
  // Its enclave would start again, and claim as soon as the standby: it stays down.
  const now = await signer.heldByAnotherThan(holder, 20 * chain.slotSeconds, () => {
    signer
      .vaultsNow()
      .filter((pid) => !alive.includes(pid))
      .forEach(killed);
  });
  const seconds = ((Date.now() - begun) / 1000).toFixed(1);
  tally.check("takeover", `enclave ${now} holds the fence ${seconds} s after the death of ${holder}`, true);
  const after = await chain.watch(({ head, finalised: is }) => is >= finalised && head > slot, 8 * chain.slotsPerEpoch);
  tally.check(
    "finality",
    `epoch ${after.finalised} finalised in slot ${after.slot}`,
    judge.finality(after.finalised, finalised),
  );
  const proposers = await chain.proposers(slot, after.slot - 1);
  const missed = judge.missedSlots(proposers).length;
  tally.check("blocks", `${missed} slots without a block because of it`, judge.blocks(proposers, chain.slotsPerEpoch));
  const vaults = signer.vaultsNow();
  const back = vaults.length === signer.enclaves && !vaults.includes(victim);
  tally.check("restart", "the dead enclave runs again", back);
}

function killed(pid) {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has just ended by itself.
  }
}

/** A handover in order costs no duty. */
async function handsOver(tally, { chain, signer }) {
  const holder = await signer.settled(30);
  const [slot, errors] = [chain.slotNow(), chain.clientErrors().length];
  const { code, text } = await signer.command("handover", "fence", "handover", signer.url, ...signer.operator);
  tally.check("handover", `casemate fence handover in slot ${slot}`, code === 0 ? [] : [text.trim()]);
  const now = await signer.heldByAnotherThan(holder, 5);
  tally.check("handover", `enclave ${now} holds the fence after ${holder}`, true);
  const epoch = chain.epochOf(slot);
  const over = (state) => state.justified >= epoch && state.slot > slot + chain.slotsPerEpoch;
  const after = await chain.watch(over, 2 * chain.slotsPerEpoch);
  const proposers = await chain.proposers(slot, slot + chain.slotsPerEpoch);
  const missed = judge.missedSlots(proposers).length;
  tally.check("blocks", `${missed} slots without a block in the epoch that follows`, judge.blocks(proposers, 1));
  tally.check("votes", `its epoch ${epoch} is justified`, after.justified >= epoch);
  const more = chain.clientErrors().slice(errors);
  tally.check("client", `the client missed ${more.length} duties, by its log`, more);
}

/** Exits are signed where operators have ordered them, and nowhere else. */
async function exits(tally, { chain, signer, folder }, keys) {
  const request = async (index, epoch) => ({
    type: "VOLUNTARY_EXIT",
    fork_info: await chain.forkInfo(),
    voluntary_exit: { epoch: String(epoch), validator_index: String(index) },
  });
  const epoch = chain.epochOf(chain.slotNow());
  const first = await request(LEAVES, epoch);
  const ask = async (index, body) => signer.sign(keys[index], body);
  const isRefused = async (what, index, body) => {
    const { status, error } = await ask(index, body);
    tally.check("exit", `${what} (${status})`, status === 412 ? [] : [error ?? "it is signed"]);
  };
  if (signer.without.has("exit")) {
    tally.skip("exits by command");
    const { signature } = await ask(LEAVES, first);
    return leaves(tally, chain, { message: first.voluntary_exit, signature });
  }
  await isRefused(`the exit of validator ${LEAVES} is refused`, LEAVES, first);
  const order = ["--validator", `${keys[LEAVES]}=${LEAVES}`, "--out", folder];
  const { code, text } = await signer.command("exit", "exit", signer.url, ...order, ...signer.operator);
  tally.check("exit", "casemate exit", code === 0 ? [] : [text.trim()]);
  const exit = JSON.parse(fs.readFileSync(path.join(folder, `exit-${LEAVES}.json`), "utf8"));
  tally.check("exit", "its exit is that validator's", exit.message.validator_index === String(LEAVES));
  const again = await ask(LEAVES, first);
  tally.check(
    "exit",
    `the client's own request is signed now (${again.status})`,
    again.status === 200 ? [] : [again.error],
  );
  const same = await ask(LEAVES, await request(LEAVES, exit.message.epoch));
  tally.check("exit", "the same exit has the same signature", same.signature === exit.signature);
  await isRefused(`the exit of validator ${STAYS} is still refused`, STAYS, await request(STAYS, epoch));
  return leaves(tally, chain, exit);
}

async function leaves(tally, chain, exit) {
  const { status, text } = await chain.postExit(exit);
  tally.check("exit", `the beacon node takes the exit (${status})`, status === 200 ? [] : [text]);
  const isLeaving = (status) => /^(active_exiting|exited_)/.test(status);
  await chain.watch(async () => isLeaving(await chain.statusOf(LEAVES)), chain.slotsPerEpoch);
  const is = await chain.statusOf(LEAVES);
  tally.check("exit", `validator ${LEAVES} is ${is} on chain`, isLeaving(is));
}

/** What was signed goes from program to program, and nothing of it gets lost. */
async function exchangesHistory(tally, { chain, signer, folder, children }, keys) {
  const proposers = await chain.proposers(1, chain.slotNow() - 1);
  await children.stop(chain.client);
  const file = (name) => path.join(folder, `${name}.json`);
  const read = (name) => JSON.parse(fs.readFileSync(file(name), "utf8"));
  const lodestar = async (direction, dataDir, name) => {
    const { code, text } = await chain.slashingProtection(direction, dataDir, file(name));
    tally.check(
      "history",
      `Lodestar: slashing-protection ${direction} of ${name}.json`,
      code === 0 ? [] : [text.trim()],
    );
  };
  const casemate = (direction, name, ...options) =>
    signer.command(`history-${direction}-${name}`, "history", direction, signer.url, ...options);
  await lodestar("export", chain.clientFolder, "client");
  const client = judge.asVersion5(read("client"));
  const bogus = read("client").data.length - client.data.length;
  tally.check(
    "history",
    `the client's file has ${VALIDATORS} keys, and ${bogus} entries that are none`,
    client.data.length === VALIDATORS,
  );
  const onChain = judge.chainAsInterchange(proposers, keys);
  tally.check("history", "the client knows every block of the chain", judge.covers(client, onChain));
  if (signer.without.has("slashing")) {
    return tally.skip("the signer's own history");
  }
  const exported = await casemate("export", "ours", "--out", file("signer"), ...signer.pins);
  tally.check("history", "casemate history export", exported.code === 0 ? [] : [exported.text.trim()]);
  const ours = read("signer");
  tally.check("history", `it lists ${VALIDATORS} keys`, ours.data.length === VALIDATORS);
  tally.check("history", "it covers every block of the chain", judge.covers(ours, onChain));
  tally.check("history", "the client knows whatever it says was signed", judge.signerWithinClient(ours, client));
  const fresh = path.join(folder, "fresh-client");
  await lodestar("import", fresh, "signer");
  await lodestar("export", fresh, "fresh");
  tally.check(
    "history",
    "a fresh client has the same highest slots and epochs",
    judge.sameHighest(ours, read("fresh")),
  );

  const raw = await casemate("import", "raw", file("client"), ...signer.operator);
  tally.check("history", `the client's file as it is gets refused (${raw.code})`, raw.code !== 0);
  fs.writeFileSync(file("client-v5"), JSON.stringify(client));
  const taken = await casemate("import", "v5", file("client-v5"), ...signer.operator);
  tally.check(
    "history",
    "and is taken as version 5, without what is no key",
    taken.code === 0 ? [] : [taken.text.trim()],
  );
  const last = await casemate("export", "last", "--out", file("signer-last"), ...signer.pins);
  tally.check(
    "history",
    "from then on the signer's covers it",
    last.code === 0 ? judge.covers(read("signer-last"), client) : [last.text],
  );
  historyControls(tally, ours, client, onChain);
}

function historyControls(tally, ours, client, onChain) {
  const spoilt = (change) => {
    const copy = structuredClone(ours);
    change(copy.data.find((one) => onChain.data.some(({ pubkey }) => pubkey === one.pubkey.toLowerCase())));
    return copy;
  };
  const later = spoilt(({ signed_attestations }) => {
    for (const vote of signed_attestations) {
      Object.assign(vote, {
        target_epoch: String(Number(vote.target_epoch) + 1),
        signing_root: `0x${"01".repeat(32)}`,
      });
    }
  });
  const noBlocks = spoilt((validator) => Object.assign(validator, { signed_blocks: [] }));
  const noticed = [
    judge.signerWithinClient(later, client).length === 1,
    judge.sameHighest(later, ours).length === 1,
    judge.covers(noBlocks, onChain).length === 1,
  ];
  tally.check("controls", "the checks notice a vote too many and a block too few", noticed.every(Boolean));
}

/** Ends the stack, and verifies what it has logged. */
async function verifiesLog(tally, { signer, folder }) {
  const verify = (name, log, ...more) =>
    signer.command(`log-verify-${name}`, "log", "verify", log, ...more, ...signer.pins);
  const logs = !signer.without.has("log");
  if (logs) {
    const { code, text } = await verify("live", signer.log, "--url", signer.url);
    tally.check("log", "casemate log verify, with the enclave's own word", code === 0 ? [] : [text.trim()]);
  }
  const ended = await signer.stop();
  tally.check("end", `the stack ends in order (${ended})`, ended === 0);
  if (!logs) {
    return tally.skip("the signing log");
  }
  const { code, text } = await verify("as-it-is", signer.log);
  tally.check("log", `casemate log verify: ${text.trim().split("\n").pop()}`, code === 0 ? [] : [text.trim()]);
  // One bit in the middle of its largest file.
  const copy = path.join(folder, "signing-log-spoilt");
  fs.cpSync(signer.log, copy, { recursive: true });
  const files = fs.readdirSync(copy, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const places = files.map((entry) => path.join(entry.parentPath ?? entry.path, entry.name));
  const [largest] = places.sort((a, b) => fs.statSync(b).size - fs.statSync(a).size);
  const bytes = fs.readFileSync(largest);
  bytes[bytes.length >> 1] ^= 1;
  fs.writeFileSync(largest, bytes);
  const spoilt = await verify("spoilt", copy);
  tally.check("log", `with one bit flipped it is refused (${spoilt.code})`, spoilt.code !== 0);
}

async function wholeSuite(tally, bench) {
  await bench.start(tally);
  const seen = await finalises(tally, bench);
  const list = await isHealthy(tally, bench);
  controls(tally, { ...seen, list });
  const keys = list.map(({ validator }) => validator.pubkey);
  await servesKeyManager(tally, bench, keys);
  await survivesKill(tally, bench);
  await handsOver(tally, bench);
  const unharmed = judge.validators(await bench.chain.validatorList(), VALIDATORS);
  tally.check("validators", "all validators are still active, none is slashed", unharmed);
  await exits(tally, bench, keys);
  await exchangesHistory(tally, bench, keys);
  await verifiesLog(tally, bench);
}

/** The first part alone. */
async function shortChain(tally, bench) {
  await bench.start(tally);
  await finalises(tally, bench);
  if (bench.saboteur) {
    const { spoilt } = bench.saboteur;
    tally.check("sabotage", `${spoilt} answers were spoilt`, spoilt > 0);
  }
}

/** Runs something on a bench of its own, for so long; whatever happens, nothing of it is left. */
async function onBench(options, tally, how, suite) {
  const bench = new Bench(options, how);
  const interrupted = new Promise((_, reject) => {
    const seconds = how.seconds;
    setTimeout(() => reject(new Error(`not done after ${seconds} s`)), seconds * 1000).unref();
    for (const signal of ["SIGINT", "SIGTERM"]) {
      process.once(signal, () => {
        tally.interrupted = true;
        reject(new Error(signal));
      });
    }
  });
  try {
    await Promise.race([suite(tally, bench), interrupted]);
  } catch (error) {
    tally.check("run", "the run", [error.message]);
  }
  if (tally.failed.length > 0 && !how.sabotage) {
    const { chain, signer } = bench;
    [signer.stack, chain.beacon, chain.client].filter(Boolean).forEach((child) => console.log(lastLines(child)));
  }
  await bench.stop();
}

/** Each sabotage must be noticed by the checks that are for it. All else goes well: nothing else is to blame. */
async function selfTest(options, tally) {
  for (const [sabotage, checks] of Object.entries(SABOTAGES)) {
    const inner = new Tally(`     [${sabotage}] `);
    const folder = path.join(options.work, sabotage);
    await onBench(options, inner, { sabotage, enclaves: 1, folder, seconds: options.seconds }, shortChain);
    if (inner.interrupted) {
      return tally.check("run", "the run", ["interrupted"]);
    }
    const wrong =
      inner.failed.join() === checks.join() ? [] : [`what failed is: ${inner.failed.join(", ") || "nothing"}`];
    tally.check(sabotage, `spoilt ${sabotage} are noticed by ${checks.join(" and ")}`, wrong);
  }
}

function optionsOf(argv) {
  const text = { type: "string" };
  const { values } = parseArgs({
    args: argv,
    options: {
      modules: text,
      dev: text,
      casemate: text,
      work: text,
      preset: { ...text, default: "minimal" },
      "slot-seconds": text,
      sabotage: text,
      merged: { type: "boolean" },
      "self-test": { type: "boolean" },
    },
  });
  for (const name of ["modules", "dev", "casemate"]) {
    if (!values[name]) {
      throw new Error(`--${name} is missing`);
    }
    values[name] = path.resolve(values[name]);
  }
  const slotsPerEpoch = { minimal: 8, mainnet: 32 }[values.preset];
  if (!slotsPerEpoch || (values.sabotage && !SABOTAGES[values.sabotage])) {
    throw new Error("--preset is minimal or mainnet; --sabotage is attestations, blocks or signatures");
  }
  const work = path.resolve(values.work ?? fs.mkdtempSync(path.join(os.tmpdir(), "casemate-lodestar-")));
  if (fs.existsSync(work) && fs.readdirSync(work).length > 0) {
    throw new Error(`${work} is not empty`);
  }
  const slotSeconds = Number(values["slot-seconds"] ?? (values.preset === "minimal" ? 2 : 1));
  return {
    ...values,
    slotSeconds,
    keep: values.work !== undefined,
    work,
    // About twice what it takes.
    seconds: 120 + 15 * slotsPerEpoch * slotSeconds,
    // For a program that lacks what this suite is for: «policy,log,key-manager,exit,slashing».
    without: new Set((process.env.CASEMATE_WITHOUT ?? "").split(",")),
  };
}

async function main() {
  const options = optionsOf(process.argv.slice(2));
  const { sabotage, work, seconds } = options;
  const tally = new Tally();
  const begun = Date.now();
  if (options["self-test"]) {
    await selfTest(options, tally);
  } else {
    const suite = sabotage ? shortChain : wholeSuite;
    await onBench(options, tally, { sabotage, enclaves: sabotage ? 1 : 2, folder: work, seconds }, suite);
  }
  const failed = tally.failed.length;
  const skipped = tally.skipped > 0 ? `, ${tally.skipped} skipped` : "";
  const kept = failed > 0 || options.keep;
  if (!kept) {
    fs.rmSync(work, { recursive: true, force: true });
  }
  const where = kept ? `; logs in ${work}` : "";
  console.log(
    `${tally.passed} passed, ${failed} failed${skipped}, ${Math.round((Date.now() - begun) / 1000)} s${where}`,
  );
  process.exit(failed > 0 ? 1 : 0);
}

main().catch((error) => {
  console.error(`run.mjs: ${error.message}`);
  process.exit(2);
});
