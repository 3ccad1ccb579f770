"""`tls_credentials` reads the files of a TLS connection and makes gRPC's credentials of them.

gRPC itself reports a wrong file only as a failed connection, so the files are checked here first.
"""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import TypeAlias

import grpc

from treadle.client.errors import InputError

AnyPath: TypeAlias = str | os.PathLike[str]
"""The name of a file."""

MAX_FILE_BYTES = 16 * 1024 * 1024
"""The largest file that is read."""

SYSTEM_ROOTS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where Linux distributions keep the certificate authorities that a machine trusts."""


def tls_credentials(
    ca_file: AnyPath | None, cert_file: AnyPath | None, key_file: AnyPath | None
) -> grpc.ChannelCredentials:
    """Returns the credentials of a connection with TLS.

    Args:
        ca_file: The certificate authorities to trust, in PEM; None: those of this machine.
        cert_file: The client's certificate and its chain, in PEM; None: the client shows none.
        key_file: The private key of the certificate, in PEM.

    Raises:
        InputError: A file cannot be read, holds something else, or the key belongs to another
            certificate.
    """
    roots = _system_roots() if ca_file is None else _read_authorities(ca_file)
    if cert_file is None and key_file is None:
        return grpc.ssl_channel_credentials(roots)
    if cert_file is None or key_file is None:
        given, missing = ("key_file", "cert_file")[:: 1 if cert_file is None else -1]
        raise InputError(f"{given} is given without {missing}: give both", argument=missing)
    certificate, key = _read_pair(cert_file, key_file)
    return grpc.ssl_channel_credentials(roots, key, certificate)


def _system_roots() -> bytes | None:
    """Returns the authorities that this machine trusts; None: those that come with gRPC."""
    for path in (os.environ.get("SSL_CERT_FILE", ""), *SYSTEM_ROOTS):
        if path and os.path.isfile(path):
            try:
                return Path(path).read_bytes()
            except OSError:
                continue
    return None


def _read_authorities(path: AnyPath) -> bytes:
    """Reads certificate authorities.

    Returns:
        The file's bytes.

    Raises:
        InputError: The file cannot be read, or holds no certificate.
    """
    content = _read("ca_file", path)
    try:
        text = content.decode("ascii", "ignore")  # comments in a bundle may be anything
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ValueError, ssl.SSLError):
        raise InputError(
            f"ca_file {_shown(path)} holds no certificate that can be read: give the certificate "
            "of the authority that signed the server's, in PEM"
        ) from None
    return content


def _read_pair(cert_file: AnyPath, key_file: AnyPath) -> tuple[bytes, bytes]:
    """Reads a certificate and its private key.

    Returns:
        The bytes of both files.

    Raises:
        InputError: A file cannot be read or holds something else, or the two do not fit.
    """
    certificate = _read("cert_file", cert_file)
    key = _read("key_file", key_file)
    if b"-----BEGIN CERTIFICATE-----" not in certificate:
        raise InputError(f"cert_file {_shown(cert_file)} holds no certificate in PEM")
    if not re.search(rb"-----BEGIN (\w+ )?PRIVATE KEY-----", key):
        raise InputError(f"key_file {_shown(key_file)} holds no private key in PEM")
    if b"ENCRYPTED" in key:
        raise InputError(
            f"key_file {_shown(key_file)} is encrypted, which gRPC cannot read: write it without "
            "a password, with `openssl pkey -in FILE -out PLAIN`, readable by you alone"
        )
    try:
        # Only reads the files; without the callback, OpenSSL would ask for a password.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            cert_file, key_file, password=lambda: b""
        )
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InputError(
                f"key_file {_shown(key_file)} belongs to another certificate than cert_file "
                f"{_shown(cert_file)}: give the key that the certificate was made with"
            ) from None
        raise InputError(
            f"cert_file {_shown(cert_file)} and key_file {_shown(key_file)} cannot be read: give "
            "a certificate and its private key, both in PEM"
        ) from None
    return certificate, key


def _read(argument: str, path: AnyPath) -> bytes:
    """Reads a file.

    Returns:
        Its bytes.

    Raises:
        InputError: It cannot be read.
    """
    if not isinstance(path, str | bytes | os.PathLike):  # a number would be an open file of others
        raise InputError(
            f"{argument} {path!r} cannot be read: give the name of a file", argument=argument
        )
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{argument} {_shown(path)} cannot be read: {reason}", argument=argument
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"{argument} {_shown(path)} is larger than {MAX_FILE_BYTES:,} bytes: it is no file of "
            "certificates",
            argument=argument,
        )
    return content


def _shown(path: AnyPath) -> str:
    """Returns the name of a file in quotes, so that it stays as it is in any interface."""
    return repr(os.fspath(path)) if isinstance(path, str | os.PathLike) else repr(path)
