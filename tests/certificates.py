"""`Authority` makes certificates at run time: for servers, for callers, and wrong ones."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its private key, in PEM."""

    cert_file: Path
    key_file: Path

    @property
    def cert(self) -> bytes:
        """The certificate chain, as PEM."""
        return self.cert_file.read_bytes()

    @property
    def key(self) -> bytes:
        """The private key, as PEM."""
        return self.key_file.read_bytes()


class Authority:
    """A certificate authority, with a folder for its files.

    Args:
        folder: Where `ca_file` and the pairs are written; it is created.
        name: The common name of the authority.
    """

    def __init__(self, folder: Path, name: str = "Test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name, "")
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * DAY)
            .not_valid_after(now + 365 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / "ca.pem"
        write(self.ca_file, self._certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    @property
    def ca(self) -> bytes:
        """The authority's own certificate, as PEM."""
        return self.ca_file.read_bytes()

    def server(self, file: str = "server", **how: object) -> Pair:
        """Makes a certificate for a server at localhost, 127.0.0.1 and ::1; see `issue`."""
        settings = {"dns": ("localhost",), "ips": ("127.0.0.1", "::1"), "for_server": True} | how
        return self.issue(file, **settings)  # type: ignore[arg-type]

    def issue(
        self,
        file: str,
        common_name: str | None = None,
        *,
        organization: str = "",
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        uris: Sequence[str] = (),
        emails: Sequence[str] = (),
        begins: datetime.timedelta = -HOUR,
        ends: datetime.timedelta = DAY,
        for_server: bool = False,
        self_signed: bool = False,
        password: bytes | None = None,
    ) -> Pair:
        """Makes a certificate, by itself one for a client, and writes FILE.pem and FILE.key.

        Args:
            file: The name of the files, without their suffixes.
            common_name: CN of the subject; None: `file`. An empty one leaves it out.
            organization: O of the subject, if any.
            dns: DNS names of the subject alternative name.
            ips: IP addresses of it.
            uris: URIs of it, such as `spiffe://...`.
            emails: E-mail addresses of it.
            begins: When it becomes valid, from now.
            ends: When it expires, from now.
            for_server: For a server and not for a client.
            self_signed: Signed with its own key instead of the authority's.
            password: What the private key is encrypted with.

        Returns:
            Its files.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = _name(file if common_name is None else common_name, organization)
        names: list[x509.GeneralName] = [
            *map(x509.DNSName, dns),
            *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips),
            *map(x509.UniformResourceIdentifier, uris),
            *map(x509.RFC822Name, emails),
        ]
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if for_server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    (key if self_signed else self._key).public_key()
                ),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(names), critical=not list(subject)
            )
        certificate = builder.sign(key if self_signed else self._key, hashes.SHA256())
        pair = Pair(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        write(pair.cert_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption(),
        )
        write(pair.key_file, private, 0o600)
        return pair


def copy_over(source: Pair, target: Pair) -> None:
    """Gives the files of `target` the content of `source`, each in one step, the key first."""
    for new, old in ((source.key_file, target.key_file), (source.cert_file, target.cert_file)):
        fresh = old.with_name(old.name + ".new")
        write(fresh, new.read_bytes(), 0o600)
        os.replace(fresh, old)


def write(file: Path, data: bytes, mode: int) -> None:
    """Writes a file with these permissions, whatever the umask is: a server looks at them."""
    file.touch(mode=0o600)
    file.chmod(mode)
    file.write_bytes(data)


def channel_credentials(
    authority: Authority | None, pair: Pair | None = None
) -> grpc.ChannelCredentials:
    """Returns what a caller connects with.

    Args:
        authority: The one that the caller trusts; None: those that gRPC trusts by itself.
        pair: The certificate that it shows, if any.
    """
    return grpc.ssl_channel_credentials(
        root_certificates=authority.ca if authority else None,
        private_key=pair.key if pair else None,
        certificate_chain=pair.cert if pair else None,
    )


def _name(common_name: str, organization: str) -> x509.Name:
    parts = []
    if organization:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    if common_name:
        parts.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(parts)


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
