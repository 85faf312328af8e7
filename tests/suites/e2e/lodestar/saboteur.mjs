// Stands between client and signer and spoils one thing: a suite that passes all the same would prove nothing.
import http from "node:http";

/** What can be spoilt, and which checks must notice: these, and no others. */
export const SABOTAGES = {
  attestations: ["finality"],
  blocks: ["finality", "blocks"],
  signatures: ["finality", "blocks"],
};

export class Saboteur {
  constructor(signer, sabotage) {
    this.signer = new URL(signer);
    this.sabotage = sabotage;
    this.spoilt = 0;
    this.agent = new http.Agent({ keepAlive: true });
  }

  async start() {
    this.server = http.createServer((request, response) => {
      this.#relay(request, response).catch((error) => response.destroy(error));
    });
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
  }

  stop() {
    this.server?.close();
    this.server?.closeAllConnections();
    this.agent.destroy();
  }

  async #relay(request, response) {
    const body = await all(request);
    const answer = this.#refused(body) ?? (await this.#ask(request, body));
    const spoilt = this.sabotage === "signatures" ? this.#flipped(answer) : answer;
    response.writeHead(spoilt.status, { "Content-Type": "application/json" });
    response.end(spoilt.body);
  }

  #refused(body) {
    const type = body.length > 0 ? JSON.parse(body).type : undefined;
    const status =
      (this.sabotage === "attestations" && type === "ATTESTATION" && 412) ||
      (this.sabotage === "blocks" && type?.startsWith("BLOCK") && 500);
    if (!status) {
      return undefined;
    }
    this.spoilt += 1;
    return { status, body: JSON.stringify({ error: "sabotage", message: "sabotage" }) };
  }

  #flipped(answer) {
    const { signature } = JSON.parse(answer.body);
    if (!signature) {
      return answer;
    }
    this.spoilt += 1;
    const last = Number.parseInt(signature.slice(-1), 16) ^ 1;
    return { ...answer, body: JSON.stringify({ signature: signature.slice(0, -1) + last.toString(16) }) };
  }

  #ask({ method, url }, body) {
    const headers = { Accept: "application/json", "Content-Type": "application/json", "Content-Length": body.length };
    return new Promise((resolve, reject) => {
      const request = http.request(
        new URL(url, this.signer),
        { method, headers, agent: this.agent },
        async (response) => {
          resolve({ status: response.statusCode, body: (await all(response)).toString() });
        },
      );
      request.on("error", reject);
      request.end(body);
    });
  }
}

async function all(stream) {
  const parts = [];
  for await (const part of stream) {
    parts.push(part);
  }
  return Buffer.concat(parts);
}
