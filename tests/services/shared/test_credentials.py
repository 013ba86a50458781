"""Files of certificates: what cannot be used stops the start and names its setting."""

import os
import subprocess
from pathlib import Path

import pytest

from dualmap_router.settings import RouterSettings
from dualmap_service.errors import SettingsError
from dualmap_service.settings import load_settings

from ...certificates import Authority, Pem


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pem(authority: Authority) -> Pem:
    return authority.issue("end")


def refused(**environ: str) -> str:
    """What the start says."""
    named = {f"DUALMAP_{name.upper()}": value for name, value in environ.items()}
    with pytest.raises(SettingsError) as caught:
        load_settings(RouterSettings, "router", named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TLS = "rediss://127.0.0.1:1/0"


def test_good_files(authority: Authority, pem: Pem) -> None:
    flags = {"redis_url": TLS, "redis_ca_file": authority.ca_file}
    flags |= {"redis_cert_file": pem.cert_file, "redis_key_file": pem.key_file}
    loaded = load_settings(RouterSettings, "router", {}, flags)
    assert loaded.settings.redis_pem().client_context().get_ca_certs()


def test_a_missing_file_is_named_as_it_was_set(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    said = refused(redis_url=TLS, redis_ca_file=missing)
    assert said == f"DUALMAP_REDIS_CA_FILE: cannot read {missing}: No such file or directory"
    with pytest.raises(SettingsError, match=r"^--redis-ca-file: cannot read"):
        load_settings(RouterSettings, "router", {}, {"redis_url": TLS, "redis_ca_file": missing})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(pem: Pem) -> None:
    Path(pem.key_file).chmod(0)
    assert "DUALMAP_REDIS_KEY_FILE: cannot read" in refused(
        redis_url=TLS, redis_cert_file=pem.cert_file, redis_key_file=pem.key_file
    )


def test_a_folder(tmp_path: Path) -> None:
    assert "DUALMAP_REDIS_CA_FILE: cannot read" in refused(redis_url=TLS, redis_ca_file=str(tmp_path))


def test_no_pem(tmp_path: Path, pem: Pem) -> None:
    garbage = tmp_path / "garbage.pem"
    for content in (b"", b"\x00\xff\x80", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        garbage.write_bytes(content)
        assert "DUALMAP_REDIS_CA_FILE" in refused(redis_url=TLS, redis_ca_file=str(garbage))
        said = refused(redis_url=TLS, redis_cert_file=str(garbage), redis_key_file=pem.key_file)
        assert "DUALMAP_REDIS_CERT_FILE" in said


def test_a_certificate_without_its_key(authority: Authority, pem: Pem) -> None:
    assert refused(redis_url=TLS, redis_cert_file=pem.cert_file) == (
        "DUALMAP_REDIS_CERT_FILE is set and DUALMAP_REDIS_KEY_FILE is not: a certificate needs its key"
    )
    assert "DUALMAP_REDIS_CERT_FILE is not" in refused(redis_url=TLS, redis_key_file=pem.key_file)
    other = authority.issue("other")
    assert "DUALMAP_REDIS_KEY_FILE" in refused(
        redis_url=TLS, redis_cert_file=pem.cert_file, redis_key_file=other.key_file
    )


def test_a_key_under_a_password_is_refused_and_not_asked_for(pem: Pem, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    command = [
        "openssl",
        "pkey",
        "-in",
        pem.key_file,
        "-aes256",
        "-passout",
        "pass:secret",
        "-out",
        str(locked),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert "unencrypted key" in refused(
        redis_url=TLS, redis_cert_file=pem.cert_file, redis_key_file=str(locked)
    )


def test_certificates_that_nothing_would_use(authority: Authority) -> None:
    said = refused(redis_url="redis://127.0.0.1:1/0", redis_ca_file=authority.ca_file)
    assert said == "DUALMAP_REDIS_URL: certificates are set, but only rediss:// uses them"


def test_a_url_without_meaning() -> None:
    assert refused(redis_url="redis+sentinel://one,two").startswith("DUALMAP_REDIS_URL: the master's name")
