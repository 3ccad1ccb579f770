"""`CertificateFiles` reads and checks the certificate, the key and the authorities of the server.

Faults are found here because gRPC reports none: it would refuse to listen without a reason, or
listen and fail every connection.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from treadle.server.access.trusted_file import TrustedFile, TrustedFileError
from treadle.server.config import MalformedSettingError, ServerConfig, SettingError

_MAX_FILE_BYTES = 1 << 20
"""A larger file is refused. The authorities of all the web take a fifth of it."""

_MIN_RSA_BITS = 2048

_CURVES = (ec.SECP256R1, ec.SECP384R1)
"""The curves whose certificates gRPC can serve with."""

_CERTIFICATES = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEYS = re.compile(rb"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----(.+?)-----END \1-----", re.DOTALL)

_WARN_AT_MOST = timedelta(days=14)
_WARN_PART = 5
"""A certificate that lasts for days only is near its end in the last fifth of its time."""


@dataclass(frozen=True)
class FileContents:
    """What the files hold."""

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes
    """Empty where no client needs a certificate."""
    key_is_open: bool
    """Whether every user of this machine may read the key."""


@dataclass(frozen=True)
class ServerCertificate:
    """A checked certificate with its key, and the authorities of client certificates."""

    chain: bytes
    """The server's own certificate and those between it and its authority, as PEM."""
    key: bytes = field(repr=False)
    """The private key, as PEM."""
    client_ca: bytes
    """The authorities that sign the certificates of clients, as PEM; empty: clients need none."""
    fingerprint: str
    """The start of the SHA-256 of the server's own certificate, in hexadecimal."""
    expires: datetime
    """When the server's own certificate expires."""
    warn_from: datetime
    """From when on a renewal is late."""
    notes: tuple[str, ...] = ()
    """What is doubtful about the files, one sentence each."""

    def complaint(self, now: datetime) -> str:
        """Returns that the certificate expires soon or has expired, as one sentence, or ''.

        Args:
            now: The time.
        """
        if now < self.warn_from:
            return ""
        when = "has expired" if now >= self.expires else "expires soon"
        return (
            f"the certificate of the server {when} ({_time(self.expires)}): renew the files of "
            "--tls-cert-file and --tls-key-file, which are read again by themselves"
        )


@dataclass(frozen=True)
class CertificateFiles:
    """The names of the files."""

    cert_file: str
    key_file: str
    client_ca_file: str

    @classmethod
    def of(cls, config: ServerConfig) -> CertificateFiles | None:
        """Returns the files that the settings name; None: the server speaks no TLS.

        Raises:
            MalformedSettingError: One of them lacks another.
        """
        given = config.tls_client_ca_file and "tls_client_ca_file"
        given = (config.tls_key_file and "tls_key_file") or given
        given = (config.tls_cert_file and "tls_cert_file") or given
        if not given:
            return None
        for needed in ("tls_cert_file", "tls_key_file"):
            if not getattr(config, needed):
                fault = f"is not given, and --{given.replace('_', '-')} needs it"
                raise MalformedSettingError(needed, fault)
        return cls(config.tls_cert_file, config.tls_key_file, config.tls_client_ca_file)

    def read(self) -> FileContents:
        """Reads the files.

        Returns:
            Their contents, unchecked.

        Raises:
            SettingError: One cannot be read.
        """
        cert, _ = _read("tls_cert_file", self.cert_file)
        key, key_is_open = _read("tls_key_file", self.key_file)
        client_ca = b""
        if self.client_ca_file:
            client_ca, _ = _read("tls_client_ca_file", self.client_ca_file)
        return FileContents(cert, key, client_ca, key_is_open)

    def check(self, contents: FileContents, now: datetime | None = None) -> ServerCertificate:
        """Checks that the contents belong together and can be used.

        Args:
            contents: The contents of the files.
            now: The time at which they are to be valid; None: this time.

        Returns:
            What gRPC needs of them.

        Raises:
            SettingError: They do not or cannot. The message names the setting, the file, the fault
                and the remedy.
        """
        now = now or datetime.now(UTC)
        chain = self._certificates("tls_cert_file", self.cert_file, contents.cert)
        own = chain[0]
        key = self._key(contents.key)
        self._check_pair(chain, key)
        _check_time("tls_cert_file", self.cert_file, own, now)
        self._check_purpose(own)
        authorities: list[x509.Certificate] = []
        if self.client_ca_file:
            file = self.client_ca_file
            authorities = self._certificates("tls_client_ca_file", file, contents.client_ca)
            if all(authority.not_valid_after_utc <= now for authority in authorities):
                _check_time("tls_client_ca_file", file, authorities[0], now)
        lifetime = own.not_valid_after_utc - own.not_valid_before_utc
        return ServerCertificate(
            chain=_pem(chain),
            key=key.private_bytes(
                Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            client_ca=_pem(authorities),
            fingerprint=own.fingerprint(hashes.SHA256()).hex()[:16],
            expires=own.not_valid_after_utc,
            warn_from=own.not_valid_after_utc - min(_WARN_AT_MOST, lifetime / _WARN_PART),
            notes=tuple(self._notes(contents, chain[1:], authorities, now)),
        )

    def _certificates(self, setting: str, file: str, data: bytes) -> list[x509.Certificate]:
        """Returns the certificates in a file, at least one."""
        blocks = _CERTIFICATES.findall(data)
        if not blocks:
            raise SettingError(setting, f"names {file!r}, which {_no_certificate(data)}")
        try:
            return [x509.load_pem_x509_certificate(block) for block in blocks]
        except ValueError:
            fault = "has a certificate that is damaged; write the file again"
            raise SettingError(setting, f"names {file!r}, which {fault}") from None

    def _key(self, data: bytes) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
        """Returns the private key, of a kind that gRPC can serve with."""

        def refuse(fault: str) -> SettingError:
            return SettingError("tls_key_file", f"names {self.key_file!r}, which {fault}")

        found = _KEYS.search(data)
        if found is None:
            raise refuse(_no_key(data))
        if b"ENCRYPTED" in found[1] or b"ENCRYPTED" in found[2]:
            remedy = "decrypt it (openssl pkey -in FILE -out NEW) and run chmod 600 on it"
            raise refuse(f"holds an encrypted private key; {remedy}")
        try:
            key = serialization.load_pem_private_key(found[0], password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise refuse("has a private key that is damaged or of an unknown kind") from None
        if isinstance(key, rsa.RSAPrivateKey):
            if key.key_size < _MIN_RSA_BITS:
                fault = f"holds an RSA key of {key.key_size} bits, which is too weak"
                raise refuse(f"{fault}; make one of {_MIN_RSA_BITS} bits or more")
            return key
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES):
            return key
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else _kind(key)
        usable = "use RSA, or an elliptic curve P-256 or P-384"
        raise refuse(f"holds a key of the kind {kind}, with which gRPC cannot serve; {usable}")

    def _check_pair(
        self,
        chain: Sequence[x509.Certificate],
        key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    ) -> None:
        """Checks that the first certificate of the chain is that of the key."""
        public = _public(key.public_key())
        matching = [place for place, one in enumerate(chain) if _public_of(one) == public]
        if not matching:
            fault = f"is not of the certificate in {self.cert_file!r}"
            raise SettingError(
                "tls_key_file", f"names {self.key_file!r}, whose key {fault}; give a pair"
            )
        if matching[0] != 0:
            fault = "does not begin with the certificate of the server, which must come first"
            raise SettingError("tls_cert_file", f"names {self.cert_file!r}, which {fault}")

    def _check_purpose(self, own: x509.Certificate) -> None:
        """Checks that clients may take the certificate for that of a server."""
        try:
            usage = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (x509.ExtensionNotFound, ValueError):
            return
        if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {
            *usage
        }:
            fault = "is not for servers; get one with the extended key usage serverAuth"
            raise SettingError("tls_cert_file", f"names {self.cert_file!r}, which {fault}")

    def _notes(
        self,
        contents: FileContents,
        between: Sequence[x509.Certificate],
        authorities: Sequence[x509.Certificate],
        now: datetime,
    ) -> Iterator[str]:
        """Yields what is doubtful and yet works."""
        if contents.key_is_open:
            yield (
                f"every user of this machine may read the private key in {self.key_file}: run "
                "chmod o-r on it, or mount it with mode 0440"
            )
        for file, certificates in (
            (self.cert_file, between),
            (self.client_ca_file, authorities),
        ):
            for one in certificates:
                if one.not_valid_after_utc <= now:
                    subject = one.subject.rfc4514_string()
                    when = _time(one.not_valid_after_utc)
                    yield f"the certificate {subject!r} in {file} expired on {when}: remove it"


def _read(setting: str, file: str) -> tuple[bytes, bool]:
    """Returns the content of a file, and whether every user of this machine may read it."""
    trusted = TrustedFile(Path(file), _MAX_FILE_BYTES)
    try:
        return trusted.read(), trusted.is_open_to_others()
    except TrustedFileError as error:
        fault = f"names {file!r}, which {error}"
        if isinstance(error.__cause__, PermissionError):
            fault += f"; let user {os.geteuid()}, as whom the server runs, read it"
        raise SettingError(setting, fault) from error


def _no_certificate(data: bytes) -> str:
    """Returns what a file is that holds no certificate in PEM, as a clause after `which`."""
    if not data.strip():
        return "is empty; give a certificate in PEM form"
    if b"PRIVATE KEY-----" in data:
        return "holds a private key and no certificate; give the certificate in PEM form"
    if data[:1] == b"\x30":
        return "is in DER form; write it as PEM (openssl x509 -inform DER -in FILE -out NEW)"
    return "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"


def _no_key(data: bytes) -> str:
    """Returns what a file is that holds no private key in PEM, as a clause after `which`."""
    if not data.strip():
        return "is empty; give a private key in PEM form"
    if b"-----BEGIN CERTIFICATE-----" in data:
        return "holds a certificate and no private key; give the key in PEM form"
    if data[:1] == b"\x30":
        return "is in DER form; write it as PEM (openssl pkey -inform DER -in FILE -out NEW)"
    return "holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)"


def _check_time(setting: str, file: str, certificate: x509.Certificate, now: datetime) -> None:
    if certificate.not_valid_after_utc <= now:
        when = _time(certificate.not_valid_after_utc)
        raise SettingError(setting, f"names {file!r}, which expired on {when}; renew it")
    if certificate.not_valid_before_utc > now:
        when = _time(certificate.not_valid_before_utc)
        fault = f"names {file!r}, which is valid only from {when} on; check the clock, or wait"
        raise SettingError(setting, fault)


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


def _kind(key: object) -> str:
    return type(key).__name__.lstrip("_").removesuffix("PrivateKey")


def _public_of(certificate: x509.Certificate) -> bytes:
    try:
        return _public(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _public(key: object) -> bytes:
    """Returns a public key in a form in which equal ones are equal bytes."""
    encode = getattr(key, "public_bytes")  # noqa: B009 - every kind of key has it
    return bytes(encode(Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
