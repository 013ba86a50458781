"""Files of certificates: what cannot be used stops the start and names its setting."""

import os
import subprocess
from pathlib import Path

import pytest
from zmq.auth import create_certificates

from dualmap_rebalancer.settings import RebalancerSettings
from dualmap_router.settings import RouterSettings
from dualmap_service.credentials import PemFiles, Renewed
from dualmap_service.errors import SettingsError
from dualmap_service.settings import SharedSettings, load_settings
from dualmap_worker.settings import WorkerSettings

from ...certificates import Authority, Pem


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pem(authority: Authority) -> Pem:
    return authority.issue("end")


KINDS: dict[str, type[SharedSettings]] = {
    "router": RouterSettings,
    "worker": WorkerSettings,
    "rebalancer": RebalancerSettings,
}


def refused(service: str = "router", **environ: str) -> str:
    """What the start says."""
    named = {f"DUALMAP_{name.upper()}": value for name, value in environ.items()}
    with pytest.raises(SettingsError) as caught:
        load_settings(KINDS[service], service, named)
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


def test_grpc_needs_all_three(authority: Authority, pem: Pem) -> None:
    said = "DUALMAP_GRPC_CA_FILE and DUALMAP_GRPC_CERT_FILE go together: both ends show a certificate"
    for service in KINDS:
        assert refused(service, grpc_ca_file=authority.ca_file) == said
        assert refused(service, grpc_cert_file=pem.cert_file, grpc_key_file=pem.key_file) == said
    assert "DUALMAP_GRPC_KEY_FILE is not" in refused(
        "worker", grpc_ca_file=authority.ca_file, grpc_cert_file=pem.cert_file
    )


def test_https_needs_a_certificate(authority: Authority, pem: Pem) -> None:
    said = refused(router_tls_client_ca_file=authority.ca_file)
    assert said == "DUALMAP_ROUTER_TLS_CLIENT_CA_FILE needs DUALMAP_ROUTER_TLS_CERT_FILE"
    said = refused(router_tls_cert_file=pem.cert_file)
    assert "DUALMAP_ROUTER_TLS_KEY_FILE is not" in said
    said = refused(router_tls_cert_file="/nowhere", router_tls_key_file=pem.key_file)
    assert said == "DUALMAP_ROUTER_TLS_CERT_FILE: cannot read /nowhere: No such file or directory"


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    create_certificates(tmp_path, "own")
    (tmp_path / "listeners").mkdir()
    return tmp_path


def test_curve_keys(curve: Path, pem: Pem) -> None:
    own = {"curve_key_file": str(curve / "own.key_secret")}
    listeners = {"worker_curve_clients_dir": str(curve / "listeners")}
    assert "DUALMAP_CURVE_KEY_FILE and DUALMAP_WORKER_CURVE_CLIENTS_DIR go together" in refused(
        "worker", **own
    )
    assert "go together" in refused("worker", **listeners)
    assert "DUALMAP_WORKER_CURVE_CLIENTS_DIR: no NAME.key in" in refused("worker", **own, **listeners)
    (curve / "listeners/garbage.key").write_text("garbage")
    assert "garbage.key holds no CURVE key" in refused("worker", **own, **listeners)
    assert "needs DUALMAP_CURVE_WORKERS_KEY_FILE" in refused("rebalancer", **own)
    workers = {"curve_workers_key_file": str(curve / "own.key")}
    assert "DUALMAP_CURVE_WORKERS_KEY_FILE needs DUALMAP_CURVE_KEY_FILE" in refused("rebalancer", **workers)
    # The public half where the pair is wanted, and a file of another kind.
    for wrong in (curve / "own.key", Path(pem.key_file)):
        said = refused("rebalancer", curve_key_file=str(wrong), **workers)
        assert said.startswith("DUALMAP_CURVE_KEY_FILE: ")
    missing = refused("rebalancer", curve_key_file=str(curve / "missing"), **workers)
    assert missing == f"DUALMAP_CURVE_KEY_FILE: cannot read {curve}/missing: no such file"


def test_what_is_replaced_is_read_again_and_half_a_renewal_is_not(
    authority: Authority, pem: Pem, caplog: pytest.LogCaptureFixture
) -> None:
    files = PemFiles(authority.ca_file, pem.cert_file, pem.key_file)
    contexts = Renewed(files, files.server_context, "test")
    first, newer = contexts.latest, authority.issue("newer")
    assert contexts.renew() is None
    # 1. The certificate is there before its key: said once, and all is as it was.
    key = Path(pem.key_file).read_bytes()
    Path(pem.cert_file).write_bytes(Path(newer.cert_file).read_bytes())
    assert [contexts.renew(), contexts.renew()] == [None, None]
    # 2. The key is missing for a moment.
    Path(pem.key_file).unlink()
    assert [contexts.renew(), contexts.renew()] == [None, None]
    assert contexts.latest is first
    assert [record.message for record in caplog.records] == ["tls.certificates_unusable"] * 2
    # 3. Both are there.
    Path(pem.key_file).write_bytes(Path(newer.key_file).read_bytes())
    second = contexts.renew()
    assert second is not None
    assert second is contexts.latest is not first
    # 4. A key of another certificate.
    Path(pem.key_file).write_bytes(key)
    assert contexts.renew() is None
    assert contexts.latest is second
