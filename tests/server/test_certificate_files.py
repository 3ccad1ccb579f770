"""Faults of the files of TLS: each is named with the setting, the file and the remedy."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Callable
from datetime import UTC
from pathlib import Path

import pytest
from certificates import DAY, HOUR, Authority, Pair, write
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import NameOID

from treadle.server.config import ServerConfig, SettingError
from treadle.server.tls.certificate_files import CertificateFiles, ServerCertificate
from treadle.server.tls.certificate_reloader import CertificateReloader


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "files")


def check(pair: Pair, client_ca: Path | str = "") -> ServerCertificate:
    files = CertificateFiles(str(pair.cert_file), str(pair.key_file), str(client_ca))
    return files.check(files.read())


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())


def own(pair: Pair, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Pair:
    """Gives a pair a key of its own kind, and a certificate that it signs itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + 100 * DAY)
        .sign(key, hashes.SHA256())
    )
    pair.cert_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    pair.key_file.write_bytes(pem(key))
    return pair


def test_a_good_pair_is_taken(authority: Authority) -> None:
    pair = authority.server()
    certificate = check(pair, authority.ca_file)
    assert certificate.chain == pair.cert
    assert certificate.client_ca == authority.ca
    assert certificate.notes == ()
    assert "PRIVATE KEY" not in repr(certificate)
    assert "PRIVATE KEY" not in repr(CertificateFiles("", str(pair.key_file), ""))


@pytest.mark.parametrize("bits", [2048, 3072])
def test_rsa_keys_are_taken(bits: int, authority: Authority) -> None:
    check(own(authority.server(), rsa.generate_private_key(65537, bits)))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_usual_curves_are_taken_in_both_forms(
    curve: ec.EllipticCurve, form: PrivateFormat, authority: Authority
) -> None:
    key = ec.generate_private_key(curve)
    pair = own(authority.server(), key)
    text = key.private_bytes(Encoding.PEM, form, serialization.NoEncryption())
    # `openssl ecparam -genkey` writes such a block before the key.
    block = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    pair.key_file.write_bytes(block + text)
    assert check(pair).key == pem(key)


def test_one_file_may_hold_the_chain_and_the_key(authority: Authority) -> None:
    pair = authority.server()
    both = pair.cert_file.with_name("both.pem")
    write(both, b"Subject: localhost\n" + pair.key + b"\n" + pair.cert + authority.ca, 0o600)
    certificate = check(Pair(both, both))
    assert certificate.chain == pair.cert + authority.ca
    assert b"PRIVATE KEY" not in certificate.chain


def _without_files(pair: Pair) -> None:
    pair.cert_file.unlink()


def _cert(content: bytes) -> Callable[[Pair], object]:
    return lambda pair: pair.cert_file.write_bytes(content)


def _key(content: bytes) -> Callable[[Pair], object]:
    return lambda pair: pair.key_file.write_bytes(content)


def _swapped(pair: Pair) -> None:
    cert = pair.cert
    pair.cert_file.write_bytes(pair.key)
    pair.key_file.write_bytes(cert)


def _der(pair: Pair) -> None:
    certificate = x509.load_pem_x509_certificate(pair.cert)
    pair.cert_file.write_bytes(certificate.public_bytes(Encoding.DER))


def _key_in_der(pair: Pair) -> None:
    key = serialization.load_pem_private_key(pair.key, None)
    pair.key_file.write_bytes(
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _chain_reversed(pair: Pair) -> None:
    authority = pair.cert_file.with_name("ca.pem").read_bytes()
    pair.cert_file.write_bytes(authority + pair.cert)


def _encrypted_as_of_old(pair: Pair) -> None:
    header = b"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n"
    pair.key_file.write_bytes(header + b"AAAA\n-----END EC PRIVATE KEY-----\n")


def _weak(pair: Pair) -> None:
    own(pair, rsa.generate_private_key(65537, 1024))


def _large_curve(pair: Pair) -> None:
    own(pair, ec.generate_private_key(ec.SECP521R1()))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_files, "--tls-cert-file names '{cert}', which cannot be read: No such file"),
        (_cert(b"\n"), "--tls-cert-file names '{cert}', which is empty; give a certificate"),
        (_cert(b"hello"), "--tls-cert-file names '{cert}', which holds no certificate in PEM form"),
        (_swapped, "--tls-cert-file names '{cert}', which holds a private key and no certificate"),
        (_der, "--tls-cert-file names '{cert}', which is in DER form; write it as PEM (openssl x"),
        (
            _cert(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "--tls-cert-file names '{cert}', which has a certificate that is damaged",
        ),
        (
            _cert(b"x" * ((1 << 20) + 1)),
            "--tls-cert-file names '{cert}', which is larger than 1048576 bytes",
        ),
        (_chain_reversed, "--tls-cert-file names '{cert}', which does not begin with the certif"),
        (_key(b""), "--tls-key-file names '{key}', which is empty; give a private key in PEM form"),
        (_key(b"secret"), "--tls-key-file names '{key}', which holds no private key in PEM form"),
        (_key_in_der, "--tls-key-file names '{key}', which is in DER form; write it as PEM (opens"),
        (
            _key(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            "--tls-key-file names '{key}', which has a private key that is damaged",
        ),
        (_encrypted_as_of_old, "--tls-key-file names '{key}', which holds an encrypted private k"),
        (
            _key(pem(ec.generate_private_key(ec.SECP256R1()))),
            "--tls-key-file names '{key}', whose key is not of the certificate in '{cert}'",
        ),
        (
            _key(pem(ed25519.Ed25519PrivateKey.generate())),
            "--tls-key-file names '{key}', which holds a key of the kind Ed25519, with which gRPC",
        ),
        (_weak, "--tls-key-file names '{key}', which holds an RSA key of 1024 bits, which is too"),
        (_large_curve, "which holds a key of the kind secp521r1, with which gRPC cannot serve; us"),
    ],
)
def test_a_fault_is_named(spoil: Callable[[Pair], object], said: str, authority: Authority) -> None:
    pair = authority.server()
    spoil(pair)
    with pytest.raises(SettingError) as caught:
        check(pair)
    assert said.format(cert=pair.cert_file, key=pair.key_file) in str(caught.value)
    assert "BEGIN EC" not in str(caught.value)


def test_a_certificate_has_its_time(authority: Authority) -> None:
    with pytest.raises(SettingError, match=r"^--tls-cert-file names .*, which expired on 20.*UTC"):
        check(authority.server(begins=-2 * DAY, ends=-HOUR))
    with pytest.raises(SettingError, match=r", which is valid only from 20.* on; check the clock"):
        check(authority.server(begins=HOUR))


def test_an_encrypted_key_is_named_with_its_remedy(authority: Authority) -> None:
    with pytest.raises(SettingError, match=r"holds an encrypted .*; decrypt it \(openssl pkey"):
        check(authority.server(password=b"a secret"))


def test_a_certificate_of_a_client_is_not_one_of_a_server(authority: Authority) -> None:
    with pytest.raises(SettingError, match=r"is not for servers; get one with .* serverAuth"):
        check(authority.issue("robot"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"x", "holds no certificate in PEM form"),
    ],
)
def test_the_authorities_of_clients_are_checked(
    content: bytes | None, said: str, authority: Authority
) -> None:
    pair = authority.server()
    client_ca = authority.ca_file.with_name("clients.pem")
    if content is not None:
        write(client_ca, content, 0o600)
    with pytest.raises(SettingError, match=f"^--tls-client-ca-file names '{client_ca}', .*{said}"):
        check(pair, client_ca)


def test_authorities_that_have_all_expired_are_refused(authority: Authority) -> None:
    pair = authority.server()
    old = authority.issue("old", begins=-2 * DAY, ends=-DAY)
    with pytest.raises(SettingError, match=r"^--tls-client-ca-file names .*, which expired on"):
        check(pair, old.cert_file)
    old.cert_file.write_bytes(old.cert + authority.ca)
    (note,) = check(pair, old.cert_file).notes
    assert note.startswith(f"the certificate 'CN=old' in {old.cert_file} expired on ")


def test_what_is_no_file_is_refused(authority: Authority) -> None:
    pair = authority.server()
    pipe = pair.key_file.with_name("pipe")
    os.mkfifo(pipe)
    for file in (Path("/"), Path("/dev/zero"), pipe):
        with pytest.raises(SettingError, match="is not a regular file"):
            check(Pair(file, pair.key_file))


def test_files_that_others_may_write_are_refused(authority: Authority) -> None:
    """A further authority in one of them would let everybody in."""
    pair = authority.server()
    for file in (pair.cert_file, pair.key_file, authority.ca_file):
        for mode in (0o622, 0o620, 0o602):
            file.chmod(mode)
            with pytest.raises(SettingError, match=rf"'{file}', .* by others \(mode {mode:04o}\)"):
                check(pair, authority.ca_file)
        file.chmod(0o600)
    check(pair, authority.ca_file)


def test_a_key_that_everybody_may_read_is_doubtful(authority: Authority) -> None:
    pair = authority.server()
    pair.key_file.chmod(0o640)
    assert check(pair).notes == ()
    pair.key_file.chmod(0o644)
    (note,) = check(pair).notes
    assert f"every user of this machine may read the private key in {pair.key_file}" in note


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["cert"], "--tls-key-file is not given, and --tls-cert-file needs it"),
        (["key"], "--tls-cert-file is not given, and --tls-key-file needs it"),
        (["client_ca"], "--tls-cert-file is not given, and --tls-client-ca-file needs it"),
        (["client_ca", "cert"], "--tls-key-file is not given, and --tls-cert-file needs it"),
    ],
)
def test_a_file_without_the_other_is_refused(given: list[str], missing: str) -> None:
    config = ServerConfig(**{f"tls_{name}_file": "x" for name in given})  # type: ignore[arg-type]
    with pytest.raises(SettingError) as caught:
        CertificateFiles.of(config)
    assert str(caught.value) == missing


def test_without_settings_there_is_no_tls() -> None:
    assert CertificateFiles.of(ServerConfig()) is None
    assert CertificateReloader.of(ServerConfig()) is None


def test_the_end_of_a_certificate_is_said_before_it_comes(authority: Authority) -> None:
    year = check(authority.server(begins=-100 * DAY, ends=100 * DAY))
    now = datetime.datetime.now(UTC)
    assert year.complaint(now) == ""
    assert "expires soon (20" in year.complaint(now + 87 * DAY)
    assert "has expired (20" in year.complaint(now + 101 * DAY)
    day = check(authority.server(begins=-HOUR, ends=23 * HOUR))
    assert day.complaint(now) == ""
    assert "expires soon (20" in day.complaint(now + 20 * HOUR)


class Look:
    """A reloader whose files a test changes."""

    def __init__(self, authority: Authority) -> None:
        self.pair = authority.server()
        files = CertificateFiles(str(self.pair.cert_file), str(self.pair.key_file), "")
        self.reloader = CertificateReloader(files)
        self.first = self.reloader.certificate

    def __call__(self) -> bool:
        """Looks at the files; returns whether the certificate is still the first one."""
        self.reloader.look()
        return self.reloader.certificate is self.first


@pytest.fixture
def look(authority: Authority) -> Look:
    return Look(authority)


def test_a_pair_is_taken_once_both_files_are_there(
    look: Look, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    new = authority.server("new")
    assert look()
    look.pair.key_file.write_bytes(new.key)
    assert look(), "half of a pair"
    look.pair.cert_file.write_bytes(new.cert)
    assert not look()
    assert look.reloader.certificate.chain == new.cert
    assert not caplog.records, "a renewal in two steps is no fault"


def test_a_pair_that_stays_wrong_is_logged_once(
    look: Look, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    good = look.pair.key
    look.pair.key_file.write_bytes(authority.server("new").key)
    for _ in range(5):
        assert look()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "the certificate in use stays" in record.getMessage()
    assert f"--tls-key-file names '{look.pair.key_file}', whose key is not" in record.getMessage()
    look.pair.key_file.unlink()
    for _ in range(5):
        assert look()
    assert len(caplog.records) == 2
    write(look.pair.key_file, good, 0o600)
    assert look()
    look.pair.key_file.unlink()
    for _ in range(5):
        assert look()
    assert len(caplog.records) == 3, "a fault that comes again is logged again"


def test_files_that_a_link_leads_to_are_taken(authority: Authority, tmp_path: Path) -> None:
    """As Kubernetes mounts a secret: the link `..data` is replaced by another."""
    mount = tmp_path / "mount"
    mount.mkdir()
    for folder, pair in (("..1", authority.server("one")), ("..2", authority.server("two"))):
        (mount / folder).mkdir()
        write(mount / folder / "tls.crt", pair.cert, 0o440)
        write(mount / folder / "tls.key", pair.key, 0o440)
    (mount / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(f"..data/{name}")
    reloader = CertificateReloader(
        CertificateFiles(str(mount / "tls.crt"), str(mount / "tls.key"), "")
    )
    (mount / "..fresh").symlink_to("..2")
    (mount / "..fresh").rename(mount / "..data")
    reloader.look()
    assert reloader.certificate.chain == (mount / "..2" / "tls.crt").read_bytes()


def test_an_end_that_is_near_is_logged_once_a_day(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.server(begins=-100 * DAY, ends=DAY)
    reloader = CertificateReloader(CertificateFiles(str(pair.cert_file), str(pair.key_file), ""))
    for _ in range(3):
        reloader.look()
    assert 1 <= len(caplog.records) <= 2  # two around midnight
    assert "the certificate of the server expires soon (20" in caplog.text


def test_pairs_of_openssl_are_taken(tmp_path: Path) -> None:
    """The command of docs/security.md."""
    pair = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "30", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(pair.key_file), "-out", str(pair.cert_file)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60, umask=0o077)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert check(pair).chain == pair.cert
