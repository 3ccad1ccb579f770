"""`names` lists the names that a client's certificate proves, as callers are configured with them.

`expiry_s` says when it expires, since a call may run longer.

TLS has checked the certificate by then: that an authority of --tls-client-ca-file signed it, that
it is valid at this time, and that it is meant for clients.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID

logger = logging.getLogger(__name__)

_CERTIFICATE = "x509_pem_cert"
"""The property of an `auth_context` that holds the certificate."""


def names(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Returns the names of a client, each with its kind.

    These are `CN=robot`, the common name, if there is only one; `CN=robot,O=Lab`, the whole subject
    as RFC 4514 writes it (`openssl x509 -subject -nameopt RFC2253`); and of the subject alternative
    names `DNS:robot.internal`, `URI:spiffe://lab/robot`, `EMAIL:robot@lab.example` and
    `IP:10.0.0.7`. Special characters in a common name are escaped as in a subject, so that no
    common name looks like the subject of somebody else.

    Args:
        auth_context: What TLS knows of the client, as `ServicerContext.auth_context` returns it.

    Returns:
        The names; none without a certificate, or of one that cannot be read.
    """
    for certificate in auth_context.get(_CERTIFICATE, ()):
        return _names(bytes(certificate))  # the first one is the client's own
    return ()


def expiry_s(auth_context: Mapping[str, Iterable[bytes]]) -> float:
    """Returns when a client's certificate expires, in seconds since the epoch.

    Args:
        auth_context: What TLS knows of the client, as `ServicerContext.auth_context` returns it.

    Returns:
        The time; infinity without a certificate, or of one that cannot be read.
    """
    for certificate in auth_context.get(_CERTIFICATE, ()):
        return _expiry_s(bytes(certificate))
    return math.inf


@lru_cache(maxsize=1024)
def _expiry_s(certificate: bytes) -> float:
    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()
    except ValueError:
        return math.inf


@lru_cache(maxsize=1024)
def _names(certificate: bytes) -> tuple[str, ...]:
    """Returns the names in a certificate. Every call of a connection asks for the same ones."""
    try:
        return tuple(dict.fromkeys(_read(x509.load_pem_x509_certificate(certificate))))
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        logger.warning("the certificate of a client cannot be read, so it has no names: %s", error)
        return ()


def _read(certificate: x509.Certificate) -> Iterator[str]:
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(common_names) == 1:
        yield common_names[0].rfc4514_string()
    if subject := certificate.subject.rfc4514_string():
        yield subject
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    for name in extension.value:
        match name:
            case x509.DNSName():
                yield f"DNS:{name.value.lower()}"
            case x509.UniformResourceIdentifier():
                yield f"URI:{name.value}"
            case x509.RFC822Name():
                yield f"EMAIL:{name.value}"
            case x509.IPAddress():
                yield f"IP:{name.value}"
            case _:  # a kind that no caller can be configured with
                pass
