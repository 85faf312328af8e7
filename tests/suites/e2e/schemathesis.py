"""The running server against two OpenAPI documents: its own, and the key manager API's. Fails (exit 1) when anything differs.

usage: schemathesis.py URL TOKEN_FILE [--document FILE] [--keymanager FILE] [--skip PATH]... [--seconds N]

URL          of a casemate-dev on hoodi, on loopback; its keys are signed with, and the last one is deleted where policy allows that
TOKEN_FILE   the file of --key-manager-token-file
--document   Casemate's document from a file; without it, from GET /openapi.json
--keymanager the key manager's document; without it, keymanager-openapi.json beside this file
--skip       a path of the documents that this server does not have

Generated requests come from schemathesis' command `st` of the same Python, with a fixed seed; requests with an exact answer are below.
(This file has that package's name: it must not import it.)
"""
import argparse, http.client, json, pathlib, re, subprocess, sys, tempfile, time, urllib.parse

import jsonschema_rs

SEED = 1
KEYSTORES = "/eth/v1/keystores"
SIGN = "/api/v1/eth2/sign/{key}"
# Of the key manager's document, what Casemate leaves to validator clients.
NOT_SERVED = {
    "/eth/v1/remotekeys",
    "/eth/v1/validator/{pubkey}/feerecipient",
    "/eth/v1/validator/{pubkey}/gas_limit",
    "/eth/v1/validator/{pubkey}/graffiti",
    "/eth/v1/validator/{pubkey}/voluntary_exit",
}
HOODI = {"genesis_time": 1742213400, "slot_seconds": 12, "slots_per_epoch": 32}
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance," \
    "negative_data_rejection,unsupported_method,ignored_auth"

arguments = argparse.ArgumentParser(usage=__doc__)
arguments.add_argument("url")
arguments.add_argument("token_file", type=pathlib.Path)
arguments.add_argument("--document", type=pathlib.Path)
arguments.add_argument("--keymanager", type=pathlib.Path, default=pathlib.Path(__file__).with_name("keymanager-openapi.json"))
arguments.add_argument("--skip", action="append", default=[])
arguments.add_argument("--seconds", type=int, default=300, help="longest time of one run of st")
given = arguments.parse_args()
address = urllib.parse.urlsplit(given.url)
assert address.hostname in ("127.0.0.1", "localhost", "::1"), "only a server on this machine"
token = given.token_file.read_text().strip()

failures = []
answered = {}  # (path, method) → statuses seen by the requests of this file


def expect(condition, what):
    if not condition:
        failures.append(what)
        print(f"FAILED: {what}"[:1000])


# Requests and answers.

connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)


def ask(method, path, body=None, **headers):
    """Status, headers (names in small letters), body; nothing but what is given is sent beside Host and Content-Length."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    for last in (False, True):
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            length = headers.pop("Content-Length", None) or (len((body or "").encode()) if method != "GET" else None)
            for name, value in headers.items():
                connection.putheader(name, value)
            if length is not None:
                connection.putheader("Content-Length", str(length))
            connection.endheaders((body or "").encode() or None)
            response = connection.getresponse()
            answer = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            if answer[0] == 413:
                connection.close()  # A body that was announced never comes.
            return answer
        except (ConnectionError, http.client.HTTPException):
            connection.close()  # It was kept alive too long.
            if last:
                raise


def resolved(document, node):
    while "$ref" in node:
        found = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
        node = found
    return node


def conforms(document, path, method, answer, what):
    """Whether an answer is one that the document has: status, headers, content type, body."""
    status, headers, body = answer
    answered.setdefault((path, method), set()).add(status)
    response = document["paths"][path][method.lower()]["responses"].get(str(status))
    if response is None:
        return expect(False, f"{what}: status {status} is not in the document: {body[:300]}")
    response = resolved(document, response)
    for name, header in response.get("headers", {}).items():
        expect(name.lower() in headers or not resolved(document, header).get("required"), f"{what}: {status} without {name}")
    if method == "HEAD" or "content" not in response:
        return
    kind = headers.get("content-type", "").split(";")[0].strip()
    if kind not in response["content"]:
        return expect(False, f"{what}: {status} has the content type {kind!r}")
    is_error(status, body, what)
    schema = response["content"][kind]["schema"]
    value = json.loads(body) if kind == "application/json" else body.decode()
    validator = jsonschema_rs.validator_for({"allOf": [schema], "components": document.get("components", {})})
    for error in validator.iter_errors(value):
        expect(False, f"{what}: {status}: {str(error)[:600]}")


def is_error(status, body, what):
    if status < 400 or status == 503 and b'"checks"' in body:
        return
    error = json.loads(body)
    expect(error.get("message") and error.get("message") == error.get("error"), f"{what}: message and error differ in {body[:300]}")


def filled(path):
    return path.replace("{key}", keys[0]).replace("{pubkey}", keys[0])


def served(document):
    return {path: operations for path, operations in document["paths"].items() if path not in given.skip}


def methods(operations):
    return [method.upper() for method in operations if method in ("get", "post", "put", "patch", "delete", "head", "options")]


# Requests that schemathesis makes up.


def st(name, document, include, examples, config=""):
    """Runs `st` on these paths; nothing is generated of others."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "document.json").write_text(json.dumps(document))
        (folder / "schemathesis.toml").write_text(config)
        paths = [part for path in include for part in ("--include-path", path)]
        command = [
            pathlib.Path(sys.executable).with_name("st"), "--config-file", "schemathesis.toml", "run", "document.json", "--url", given.url, *paths,
            "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", str(SEED),
            "--generation-database", "none", "--continue-on-failure", "--request-timeout", "15", "--warnings", "off", "--no-color",
            "--header", f"Authorization: Bearer {token}",
        ]
        try:
            run = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=given.seconds)
            code, output = run.returncode, run.stdout
        except subprocess.TimeoutExpired as expired:
            code, output = "none in time", (expired.stdout or b"").decode()
    # That it has really asked, and all of them.
    generated = re.search(r"(\d+) generated", output)
    tested = re.search(r"Tested: (\d+)", output)
    operations = sum(len(methods(document["paths"][path])) for path in include)
    complete = generated and tested and int(tested[1]) == operations and int(generated[1]) >= 5 * operations
    if code != 0 or not complete:
        print(output.replace(token, "TOKEN")[-12000:])
    expect(code == 0 and complete, f"{name}: st ended with {code}, {tested and tested[1]} of {operations} operations, {generated and generated[1]} requests")
    print(f"{name}: {operations} operations, {generated and generated[1]} requests, {time.monotonic() - begun:.0f} s", flush=True)


def generated_requests():
    paths = served(own)
    slow = {SIGN, "/attestation"}
    st("Casemate's document", own, [path for path in paths if path not in slow], 30)
    # Two documents a second are all there are.
    st("attestation", own, ["/attestation"], 12, "[phases.coverage]\nenabled = false\n")
    # Its schema is large: the systematic phase would take minutes. Half of the requests name a key that is there, but for another chain.
    for key in [None, keys[1]]:
        config = "[phases.coverage]\nenabled = false\n"
        if key:
            config += f'[[operations]]\ninclude-path = "{SIGN}"\nparameters = {{ "path.key" = "{key}" }}\n'
        st("sign" + (" with a key" if key else ""), own, [SIGN], 50, config)
    if KEYSTORES in paths:
        st("key manager's document", keymanager, [KEYSTORES], 40)


# Requests with an exact answer.


def signing():
    path = SIGN.replace("{key}", keys[0])
    examples = own["paths"][SIGN]["post"]["requestBody"]["content"]["application/json"]["examples"]
    kinds = {variant.rsplit("/", 1)[1] for variant in own["components"]["schemas"]["SignRequest"]["discriminator"]["mapping"].values()}
    expect(len(kinds) == len({example["value"]["type"] for example in examples.values()}), "not every type has an example")
    # Blocks and attestations move the watermarks: the second run of this file sees 412. The policy may refuse exits, deposits, fee recipients, and blocks without proofs.
    may_be_refused = {"BLOCK", "BLOCK_V2", "ATTESTATION", "VOLUNTARY_EXIT", "DEPOSIT", "VALIDATOR_REGISTRATION", "PROPOSER_PREFERENCES"}
    for name, example in examples.items():
        body = example["value"]
        answer = ask("POST", path, body, Accept="application/json")
        conforms(own, SIGN, "POST", answer, f"the example {name}")
        allowed = (200, 412) if body["type"] in may_be_refused else (200,)
        if name == "BLOCK_V2 with proofs" and b"proof" in answer[2] or body["type"].startswith("BLOCK") and b"policy requires" in answer[2]:
            allowed = (400, 412)
        expect(answer[0] in allowed, f"the example {name}: {answer[0]} {answer[2][:300]}")
        # Without what its type needs.
        for key in set(body) - {"type", "proofs", "signingRoot"}:
            answer = ask("POST", path, {k: v for k, v in body.items() if k != key})
            conforms(own, SIGN, "POST", answer, f"{name} without {key}")
            expect(answer[0] == 400, f"{name} without {key}: {answer[0]}")
        answer = ask("POST", path, body | {"signingRoot": "0x" + "99" * 32})
        conforms(own, SIGN, "POST", answer, f"{name} with another signingRoot")
        expect(answer[0] in (400, 412), f"{name} with another signingRoot: {answer[0]}")

    # As of now: signed, signed again, and then refused with another root.
    slot = (int(time.time()) - HOODI["genesis_time"]) // HOODI["slot_seconds"]
    epoch = slot // HOODI["slots_per_epoch"]
    vote = examples["ATTESTATION"]["value"]
    data = vote["attestation"] | {
        "slot": str(epoch * HOODI["slots_per_epoch"]),
        "source": {"epoch": str(epoch - 1), "root": "0x" + "02" * 32}, "target": {"epoch": str(epoch), "root": "0x" + "03" * 32},
    }
    for status, root in [(200, "11"), (200, "11"), (412, "22")]:
        answer = ask("POST", path, vote | {"attestation": data | {"beacon_block_root": "0x" + root * 32}}, Accept="application/json")
        conforms(own, SIGN, "POST", answer, "an attestation")
        expect(answer[0] == status, f"an attestation of root {root}: {answer[0]} {answer[2][:300]}")
    block = examples["BLOCK_V2"]["value"]
    header = block["beacon_block"]["block_header"] | {"slot": str(slot + 10**6)}
    answer = ask("POST", path, block | {"beacon_block": {"version": "FULU", "block_header": header}})
    conforms(own, SIGN, "POST", answer, "a block of the future")
    expect(answer[0] in (400, 412), f"a block of the future: {answer[0]}")

    # The forms of the answer, of the key, of numbers and of bytes.
    randao = examples["RANDAO_REVEAL"]["value"]
    signature = json.loads(ask("POST", path, randao, Accept="application/json")[2])["signature"]
    for accept, kind in [(None, "text/plain"), ("text/plain", "text/plain"), ("*/*", "application/json"), ("text/html, application/json;q=0.1", "application/json")]:
        answer = ask("POST", path, randao, **({"Accept": accept} if accept else {}))
        conforms(own, SIGN, "POST", answer, f"Accept: {accept}")
        expect(answer[1]["content-type"].startswith(kind) and signature in answer[2].decode(), f"Accept: {accept}: {answer}")
    forms = [
        (keys[0].removeprefix("0x").upper(), randao),
        (keys[0], randao | {"type": "randao_reveal", "randao_reveal": {"epoch": int(randao["randao_reveal"]["epoch"])}, "unknown": {}}),
        (keys[0], randao | {"fork_info": {**randao["fork_info"], "genesis_validators_root": "0x" + randao["fork_info"]["genesis_validators_root"][2:].upper()}}),
    ]
    for key, body in forms:
        answer = ask("POST", SIGN.replace("{key}", key), body, Accept="application/json")
        expect(answer[0] == 200 and signature.encode() in answer[2], f"another form: {answer}")
    for wrong in ["0x0x" + "11" * 32, "11" * 32, "0x" + "11" * 31, "0x" + "11" * 33, 5, [], {}]:
        fork_info = randao["fork_info"] | {"genesis_validators_root": wrong}
        answer = ask("POST", path, randao | {"fork_info": fork_info})
        expect(answer[0] == 400, f"genesis_validators_root {wrong!r}: {answer[0]} {answer[2][:200]}")
    for wrong in ["", "+1", "-1", -1, 1.5, "1.0", "0x1", str(2**64), 2**64, None, True, [], {}]:
        answer = ask("POST", path, randao | {"randao_reveal": {"epoch": wrong}})
        expect(answer[0] == 400, f"epoch {wrong!r}: {answer[0]} {answer[2][:200]}")
    expect({200, 400, 412} <= answered[SIGN, "POST"], f"statuses of signing: {answered[SIGN, 'POST']}")


def every_path():
    limit = "99999999999"
    for path, operations in served(own).items():
        for method in methods(operations):
            what = f"{method} {path}"
            query = "?nonce=0011223344556677" if path == "/attestation" else ""
            answer = ask(method, filled(path) + query, Host="rebound.example", Authorization=f"Bearer {token}")
            conforms(own, path, method, answer, f"{what} for another Host")
            expect(answer[0] == 403, f"{what} for another Host: {answer[0]}")
            answer = ask(method, filled(path) + query, X_Request_Id="plain-1.2:3_4", Authorization=f"Bearer {token}")
            conforms(own, path, method, answer, f"{what} as it is")
            expect(answer[1].get("x-request-id") == "plain-1.2:3_4", f"{what}: the request's id does not come back")
            answer = ask(method, filled(path) + query, X_Request_Id="not plain", Authorization=f"Bearer {token}")
            expect(answer[1].get("x-request-id") not in (None, "not plain"), f"{what}: an id that is not plain comes back")
            if "requestBody" in operations[method.lower()]:
                answer = ask(method, filled(path), Content_Length=limit, Authorization=f"Bearer {token}")
                conforms(own, path, method, answer, f"{what} with {limit} bytes announced")
                expect(answer[0] == 413, f"{what} with {limit} bytes announced: {answer[0]}")
        here = set(methods(operations))
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]:
            if method in here or method == "HEAD" and "GET" in here and path != "/attestation":
                continue
            status, headers, body = ask(method, filled(path), Authorization=f"Bearer {token}")
            what = f"{method} {path}"
            expect(status == 405, f"{what}: {status}")
            allow = {word.strip() for word in headers.get("allow", "").split(",")}
            expect(here <= allow <= here | {"HEAD"}, f"{what}: 405 with Allow: {headers.get('allow')}")
            if method != "HEAD":
                is_error(status, body, what)
    for path in ["/", "/api/v1/eth1/sign/00", "/upcheck/more", "/openapi.yaml"]:
        status, headers, body = ask("GET", path)
        expect(status == 404 and "x-request-id" in headers, f"GET {path}: {status}")
        is_error(status, body, path)


def key_manager():
    expect(set(keymanager["paths"]) >= NOT_SERVED, "the document has lost paths")
    for path in set(keymanager["paths"]) - {KEYSTORES}:
        expect(path in NOT_SERVED, f"{path} is new in the key manager's document: serve it, or list it")
        for method in methods(keymanager["paths"][path]):
            status, _, body = ask(method, filled(path), {} if method != "GET" else None, Authorization=f"Bearer {token}")
            expect(status == 404, f"{method} {path}, which is not served: {status}")
            is_error(status, body, path)
    if KEYSTORES in given.skip:
        return

    def manage(method, body=None, authorization=f"Bearer {token}", what=""):
        answer = ask(method, KEYSTORES, body, **({"Authorization": authorization} if authorization is not None else {}))
        what = f"{method} {KEYSTORES} {what}"
        conforms(keymanager, KEYSTORES, method, answer, what)
        conforms(own, KEYSTORES, method, answer, what)
        value = json.loads(answer[2])
        return answer[0], value

    nobody = "0x" + "ab" * 48
    bodies = {"GET": None, "POST": {"keystores": [], "passwords": []}, "DELETE": {"pubkeys": []}}
    other = token[:-1] + ("0" if token[-1] != "0" else "1")
    for method, body in bodies.items():
        for authorization in [None, "", "Bearer", "Bearer ", f"Basic {token}", token]:
            status, _ = manage(method, body, authorization, f"with {'no' if authorization is None else 'a malformed'} token")
            expect(status == 401, f"{method} with Authorization {str(authorization).replace(token, 'TOKEN')!r}: {status}")
        for wrong in [other, token + "0", token[:-1], "0"]:
            status, _ = manage(method, body, f"Bearer {wrong}", "with another token")
            expect(status == 403, f"{method} with another token: {status}")
        # The token is asked for first: who has none learns nothing of bodies.
        if body is not None:
            expect(manage(method, "{", None, "bad JSON without a token")[0] == 401, f"{method}: a body is read without a token")

    def listed():
        return sorted(key["validating_pubkey"].lower() for key in manage("GET")[1]["data"])

    expect(listed() == sorted(key.lower() for key in json.loads(ask("GET", "/api/v1/eth2/publicKeys")[2])), "GET lists other keys than publicKeys")

    # 403 where the measured policy leaves it to operators.
    imports = {
        "bad JSON": ("{", 400), "no object": ([], 400), "no passwords": ({"keystores": []}, 400),
        "unequal numbers": ({"keystores": ["{}"], "passwords": []}, 400),
        "an object where a text belongs": ({"keystores": [{}], "passwords": ["x"]}, 400),
        "unreadable slashing data": ({"keystores": ["{}"], "passwords": ["x"], "slashing_protection": "{"}, 400),
        "no keystores": ({"keystores": ["{}", ""], "passwords": ["x", ""]}, 200),
    }
    for what, (body, wanted) in imports.items():
        status, value = manage("POST", body, what=what)
        expect(status in (wanted, 403), f"POST {what}: {status} {value}")
        if status == 200:
            expect([key["status"] for key in value["data"]] == ["error", "error"], f"POST {what}: {value}")

    for what, body in {"bad JSON": "{", "no keys": {}, "no key": {"pubkeys": ["0x12"]}, "a number": {"pubkeys": [1]}}.items():
        status, value = manage("DELETE", body, what=what)
        expect(status in (400, 403), f"DELETE {what}: {status} {value}")
    status, value = manage("DELETE", {"pubkeys": [nobody, nobody.upper().replace("0X", "0x")]}, what="of keys that are not here")
    expect(status in (200, 403), f"DELETE of keys that are not here: {status}")
    if status == 403:
        return
    expect([key["status"] for key in value["data"]] == ["not_found", "not_found"], f"DELETE of keys that are not here: {value}")
    expect(json.loads(value["slashing_protection"])["data"] == [], f"slashing data of keys that are not here: {value}")
    last = keys[-1]
    for wanted in ["deleted", "not_active"]:
        status, value = manage("DELETE", {"pubkeys": [last.upper().replace("0X", "0x")]}, what="of a key")
        found = value.get("data", [{}])[0].get("status")
        expect(status == 200 and found == wanted, f"DELETE of a key: {status} {value}, wanted {wanted}")
        if found == wanted:
            file = json.loads(value["slashing_protection"])
            expect(file["metadata"]["interchange_format_version"] == "5", f"slashing data: {value}")
            expect([key["pubkey"].lower() for key in file["data"]] == [last.lower()], f"slashing data: {value}")
    expect(last.lower() not in listed(), "a deleted key is listed")


begun = time.monotonic()
keymanager = json.loads(given.keymanager.read_text())
if given.document:
    own = json.loads(given.document.read_text())
else:
    status, headers, body = ask("GET", "/openapi.json")
    assert status == 200 and headers["content-type"] == "application/json", (status, headers)
    own = json.loads(body)
keys = json.loads(ask("GET", "/api/v1/eth2/publicKeys")[2])
assert len(keys) >= 3, "the server has too few keys"
for _ in range(50):  # The proxy asks the enclave four times a second.
    health = json.loads(ask("GET", "/healthcheck")[2])
    if health["status"] == "UP":
        break
    time.sleep(0.1)
assert health["status"] == "UP" and health["checks"][0]["data"]["network"] == "hoodi", health

signing()
every_path()
key_manager()
print(f"requests with an exact answer: {time.monotonic() - begun:.0f} s", flush=True)
generated_requests()
expect(ask("GET", "/upcheck")[2] == b"OK" and ask("GET", "/healthcheck")[0] == 200, "the server is not well afterwards")

print(f"{len(failures)} failures, {time.monotonic() - begun:.0f} s")
sys.exit(1 if failures else 0)
