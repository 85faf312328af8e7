"""casemate-local-kms, asked by a client that we did not write: boto3. The half without Recipient.

usage: boto3_client.py PROGRAM
"""
import os, socket, subprocess, sys, tempfile, time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def client(url, root=None, region="eu-central-1", access="AKIDCASEMATE", secret="casemate"):
    return boto3.client(
        "kms", endpoint_url=url, region_name=region, aws_access_key_id=access, aws_secret_access_key=secret,
        verify=root, config=Config(retries={"max_attempts": 1}, proxies={}),
    )


def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    raise AssertionError(f"{call} was not refused")


def start(program, folder, *options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [program, "--listen", f"127.0.0.1:{port}", "--state", os.path.join(folder, "kms.json"), *options],
        stdout=subprocess.PIPE, text=True,
    )
    assert "casemate-local-kms on" in server.stdout.readline()
    return server, port


def check(kms):
    key = kms.create_key(Description="a key")["KeyMetadata"]
    assert kms.describe_key(KeyId=key["Arn"])["KeyMetadata"]["Description"] == "a key"
    context = {"group": "alpha", "a": "ü \"quoted\""}
    made = kms.generate_data_key(KeyId=key["KeyId"], KeySpec="AES_256", EncryptionContext=context)
    assert len(made["Plaintext"]) == 32 and made["KeyId"] == key["Arn"]
    opened = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], KeyId=key["Arn"], EncryptionContext=context)
    assert opened["Plaintext"] == made["Plaintext"] and opened["KeyId"] == key["Arn"]
    assert "Plaintext" not in kms.generate_data_key_without_plaintext(KeyId=key["Arn"], NumberOfBytes=64)
    assert len(kms.generate_random(NumberOfBytes=100)["Plaintext"]) == 100
    assert code(kms.decrypt, CiphertextBlob=made["CiphertextBlob"]) == "InvalidCiphertextException"
    assert code(kms.decrypt, CiphertextBlob=b"nonsense") == "InvalidCiphertextException"
    assert code(kms.describe_key, KeyId="nobody") == "NotFoundException"
    other = kms.create_key()["KeyMetadata"]["Arn"]
    arguments = dict(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=context)
    assert code(kms.decrypt, KeyId=other, **arguments) == "IncorrectKeyException"
    attested = kms.create_key(Policy="""{"Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*", "Condition":
         {"StringEqualsIgnoreCase": {"kms:RecipientAttestation:PCR0": "ab"}}}]}""")["KeyMetadata"]["Arn"]
    assert code(kms.generate_data_key, KeyId=attested, KeySpec="AES_256") == "AccessDeniedException"
    bad = kms.generate_data_key
    recipient = {"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": b"nonsense"}
    assert code(bad, KeyId=other, KeySpec="AES_256", Recipient=recipient) == "ValidationException"
    return made, context, key


def main(program):
    with tempfile.TemporaryDirectory() as folder:
        server, port = start(program, folder)
        url = f"http://127.0.0.1:{port}"
        try:
            made, context, key = check(client(url))
            ask = lambda **who: code(client(url, **who).generate_random, NumberOfBytes=1)
            assert ask(secret="another") == "InvalidSignatureException"
            assert ask(access="AKIDNOBODY") == "UnrecognizedClientException"
            assert ask(region="us-east-1") == "InvalidSignatureException"
        finally:
            server.kill()
            server.wait()
        # Killed; with the same file it opens what it made.
        root = os.path.join(folder, "root.pem")
        server, port = start(program, folder, "--tls-root", root)
        try:
            kms = client(f"https://localhost:{port}", root=root)
            opened = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=context)
            assert opened["Plaintext"] == made["Plaintext"]
            check(kms)
        finally:
            server.kill()
            server.wait()
    print("boto3: all as AWS answers")


if __name__ == "__main__":
    started = time.time()
    main(sys.argv[1])
