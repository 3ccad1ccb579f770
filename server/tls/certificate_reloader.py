"""`CertificateReloader` gives gRPC the certificate of the server, and a new one once it is there.

A connection keeps the certificate with which it was made. New files are taken once they are a
complete pair; until then, and if they never are, the server continues with those it has.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import grpc

from treadle.server.config import ServerConfig, SettingError
from treadle.server.resources import thread_pools
from treadle.server.tls.certificate_files import CertificateFiles, ServerCertificate

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0
"""Seconds between two looks at the files."""


class CertificateReloader:
    """The certificate of a server, from files that may change.

    Args:
        files: The files.

    Raises:
        SettingError: They cannot be read, or cannot be used.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._contents = files.read()
        self._take(files.check(self._contents))
        self._served = self._configuration
        self._fault = ""
        self._logged_fault = ""
        self._logged_complaint = ("", datetime.min.date())
        self._complain()

    @classmethod
    def of(cls, config: ServerConfig) -> CertificateReloader | None:
        """Returns the certificate that the settings name; None: the server speaks no TLS.

        Raises:
            SettingError: Its files are not complete, cannot be read, or cannot be used.
        """
        files = CertificateFiles.of(config)
        return None if files is None else cls(files)

    @property
    def certificate(self) -> ServerCertificate:
        """The certificate that new connections get."""
        return self._certificate

    def credentials(self) -> grpc.ServerCredentials:
        """Returns the credentials of one port. TLS 1.2 is the least version that gRPC accepts."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._fetch,
            require_client_authentication=bool(self._files.client_ca_file),
        )

    async def follow(self) -> None:
        """Looks at the files for ever."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            try:
                await thread_pools.SETTINGS.run(self.look)
            except Exception:
                logger.exception("internal error while the certificate was read again")

    def look(self) -> None:
        """Takes the files if they have changed and can be used."""
        try:
            contents = self._files.read()
            if contents != self._contents:
                self._take(self._files.check(contents))
                self._contents = contents
                logger.info(
                    "new connections get the certificate %s, which expires on %s",
                    self._certificate.fingerprint,
                    f"{self._certificate.expires:%Y-%m-%d %H:%M} UTC",
                )
            self._fault = ""
            self._logged_fault = ""
        except SettingError as error:
            self._keep(str(error))
        self._complain()

    def _keep(self, fault: str) -> None:
        """Logs once why the certificate in use stays.

        One look earlier the files may just have been between two writes.
        """
        if fault == self._fault and fault != self._logged_fault:
            logger.error(
                "the certificate in use stays, and expires on %s: %s",
                f"{self._certificate.expires:%Y-%m-%d %H:%M} UTC",
                fault,
            )
            self._logged_fault = fault
        self._fault = fault

    def _take(self, certificate: ServerCertificate) -> None:
        for note in certificate.notes:
            logger.warning("%s", note)
        self._certificate = certificate
        self._configuration = grpc.ssl_server_certificate_configuration(
            [(certificate.key, certificate.chain)], certificate.client_ca or None
        )

    def _complain(self) -> None:
        """Logs once a day that the certificate expires soon or has expired."""
        now = datetime.now(UTC)
        complaint = (self._certificate.complaint(now), now.date())
        if complaint[0] and complaint != self._logged_complaint:
            logger.warning("%s", complaint[0])
            self._logged_complaint = complaint

    def _fetch(self) -> Any:  # the stubs know no None
        """Returns the certificate for a new connection; None: that of the one before.

        gRPC calls it from threads of its own, one at a time for each port.
        """
        configuration = self._configuration
        if configuration is self._served:
            return None
        self._served = configuration
        return configuration
