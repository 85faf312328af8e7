// What is judged, over what was seen and nothing else: each answers with what is wrong, and with nothing where all is
// well.

/** At most so many slots without a block. `proposers`: by slot, nothing where there is no block. */
export function blocks(proposers, allowed) {
  const missed = missedSlots(proposers);
  return missed.length > allowed ? [`no block in slots ${missed.join(", ")}: more than ${allowed}`] : [];
}

export function missedSlots(proposers) {
  return [...proposers].filter(([, proposer]) => proposer === undefined).map(([slot]) => slot);
}

export function finality(finalised, wanted) {
  return finalised >= wanted ? [] : [`epoch ${finalised} is finalised, and not ${wanted}`];
}

/** All there, active, not slashed. */
export function validators(list, count) {
  const wrong = list.length === count ? [] : [`${list.length} validators, not ${count}`];
  for (const { index, status, validator } of list) {
    if (status !== "active_ongoing" || validator.slashed) {
      wrong.push(`validator ${index} is ${status}${validator.slashed ? " and slashed" : ""}`);
    }
  }
  return wrong;
}

/** Two interchange files have the same highest slot, source and target for each of the first one's keys. */
export function sameHighest(ours, theirs) {
  const wrong = [];
  const others = byKey(theirs);
  for (const [key, validator] of byKey(ours)) {
    const [our, their] = [validator, others.get(key)].map((one) => JSON.stringify(highest(one)));
    if (our !== their) {
      wrong.push(`${short(key)}: ${our} here, ${their} there`);
    }
  }
  return wrong;
}

/** The highest block and vote that the signer's file names with their roots are in the client's, which writes before it
 * asks. What has no root is a floor that a takeover has left: it must not lie below the client's own. */
export function signerWithinClient(signer, client) {
  const wrong = [];
  const clients = byKey(client);
  for (const [key, validator] of byKey(signer)) {
    const its = clients.get(key);
    const block = top(validator.signed_blocks, "slot");
    if (block && !contains(its?.signed_blocks, block, ["slot"])) {
      wrong.push(`${short(key)}: block ${JSON.stringify(block)}`);
    }
    const vote = top(validator.signed_attestations, "target_epoch");
    if (vote && !contains(its?.signed_attestations, vote, ["target_epoch", "source_epoch"])) {
      wrong.push(`${short(key)}: vote ${JSON.stringify(vote)}`);
    }
  }
  return wrong;
}

/** Nothing of one file lies above what the other has for that key. */
export function covers(wide, narrow) {
  const wrong = [];
  const wider = byKey(wide);
  for (const [key, validator] of byKey(narrow)) {
    const [upper, lower] = [highest(wider.get(key)), highest(validator)];
    for (const what of Object.keys(lower)) {
      if (upper[what] < lower[what]) {
        wrong.push(`${short(key)}: ${what} ${upper[what]}, below ${lower[what]}`);
      }
    }
  }
  return wrong;
}

/** The blocks of the chain, as an interchange file. `keys`: by validator index. */
export function chainAsInterchange(proposers, keys) {
  const blocks = new Map();
  for (const [slot, proposer] of proposers) {
    if (proposer !== undefined) {
      blocks.set(proposer, [...(blocks.get(proposer) ?? []), { slot: String(slot) }]);
    }
  }
  const data = [...blocks].map(([index, signed_blocks]) => ({
    pubkey: keys[index],
    signed_blocks,
    signed_attestations: [],
  }));
  return { data };
}

/** Lodestar 1.5.1 writes version 4, and two entries of its database that are no keys. */
export function asVersion5({ metadata, data }) {
  return {
    metadata: { interchange_format_version: "5", genesis_validators_root: metadata.genesis_validators_root },
    data: data.filter(({ pubkey }) => pubkey.length === 98),
  };
}

export function highest(validator) {
  const most = (list, field) => Math.max(-1, ...(list ?? []).map((entry) => Number(entry[field])));
  return {
    slot: most(validator?.signed_blocks, "slot"),
    source: most(validator?.signed_attestations, "source_epoch"),
    target: most(validator?.signed_attestations, "target_epoch"),
  };
}

function byKey({ data }) {
  return new Map(data.map((validator) => [validator.pubkey.toLowerCase(), validator]));
}

function top(list, field) {
  return (list ?? []).reduce(
    (best, entry) => (best && Number(best[field]) >= Number(entry[field]) ? best : entry),
    undefined,
  );
}

function contains(list = [], entry, fields) {
  if (!entry.signing_root) {
    return list.every((other) => fields.every((field) => Number(other[field]) <= Number(entry[field])));
  }
  return list.some(
    (other) => other.signing_root === entry.signing_root && fields.every((field) => other[field] === entry[field]),
  );
}

function short(key) {
  return `${key.slice(0, 10)}…`;
}
