"""Starts moto's KMS and DynamoDB (PyPI) behind TLS, then runs a command with its place in the environment.

usage: moto.py COMMAND...
"""
import datetime, ipaddress, os, socket, ssl, subprocess, sys, tempfile, time

import boto3
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

REGION = "eu-central-1"
# Conditional writes are atomic in DynamoDB. moto serves by threads and has no lock between a condition and its write.
SERVER = """
import sys, threading
from moto.dynamodb.models.table import Table
from moto.server import main
lock, put = threading.Lock(), Table.put_item
def put_item(*arguments, **named):
    with lock:
        return put(*arguments, **named)
Table.put_item = put_item
main(sys.argv[1:])
"""


def certificates(folder):
    """A root and a certificate for localhost under it."""
    now = datetime.datetime.now(datetime.timezone.utc)

    def build(name, subject_key, issuer, issuer_key, *extensions):
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(subject_key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(issuer_key, hashes.SHA256())

    def named(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = build(named("moto root"), root_key, named("moto root"), root_key,
                 (x509.BasicConstraints(ca=True, path_length=0), True))
    leaf = build(named("localhost"), leaf_key, root.subject, root_key,
                 (x509.SubjectAlternativeName([x509.DNSName("localhost")]), False),
                 (x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), False))
    paths = [os.path.join(folder, name) for name in ("root.pem", "cert.pem", "key.pem")]
    pem = serialization.Encoding.PEM
    for path, data in zip(paths, (
        root.public_bytes(pem), leaf.public_bytes(pem),
        leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )):
        with open(path, "wb") as file:
            file.write(data)
    return paths


def main():
    with tempfile.TemporaryDirectory() as folder:
        root, certificate, key = certificates(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = open(os.path.join(folder, "log"), "w+")
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, "-H", "127.0.0.1", "-p", str(port), "-s", "-c", certificate, "-k", key],
            stdout=log, stderr=log)
        try:
            for _ in range(300):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                log.seek(0)
                sys.exit(f"moto did not start:\n{log.read()}")
            kms = boto3.client("kms", endpoint_url=f"https://localhost:{port}", region_name=REGION, verify=root,
                               aws_access_key_id="AKID", aws_secret_access_key="any", config=Config(proxies={}))
            arn = kms.create_key()["KeyMetadata"]["Arn"]
            tables = boto3.client("dynamodb", endpoint_url=f"https://localhost:{port}", region_name=REGION, verify=root,
                                  aws_access_key_id="AKID", aws_secret_access_key="any", config=Config(proxies={}))
            for number in (1, 2):
                tables.create_table(TableName=f"casemate-fence-{number}", BillingMode="PAY_PER_REQUEST",
                                    KeySchema=[{"AttributeName": "group", "KeyType": "HASH"}],
                                    AttributeDefinitions=[{"AttributeName": "group", "AttributeType": "S"}])
            environment = dict(os.environ, CASEMATE_MOTO_PORT=str(port), CASEMATE_MOTO_ROOT=root, CASEMATE_MOTO_KEY=arn)
            sys.exit(subprocess.run(sys.argv[1:], env=environment).returncode)
        finally:
            server.terminate()
            server.wait()


main()
