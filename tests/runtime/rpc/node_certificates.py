"""Certificates that name nodes, signed by an authority that a test makes."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from conveyord.runtime.rpc.tls import TlsFiles

DAY = dt.timedelta(days=1)


class NodeAuthority:
    """Signs certificates of nodes."""

    def __init__(self, directory: Path, name: str = "nodes") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = directory / f"{name}-ca.pem"
        builder = self._builder(self._name, self._key.public_key(), dt.timedelta())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(
        self, *names: str, is_uri: bool = True, age: dt.timedelta = dt.timedelta(), ca: Path | None = None
    ) -> TlsFiles:
        """Files for a node. names: its ids. age: how long ago it was made; it lasts two days."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(f"conveyord://node/{name}") if is_uri else x509.DNSName(name)
            for name in names
        ]
        builder = self._builder(subject, key.public_key(), age)
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate, secret = self._directory / f"{names[0]}.pem", self._directory / f"{names[0]}.key"
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return TlsFiles(certificate, secret, ca or self.path)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, age: dt.timedelta
    ) -> x509.CertificateBuilder:
        made = dt.datetime.now(dt.UTC) - age
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(made - DAY)
            .not_valid_after(made + 2 * DAY)
        )
