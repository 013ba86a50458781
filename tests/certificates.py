"""A certificate authority of a test's own, and what it issues, as PEM files."""

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

from dualmap_service.credentials import PemFiles


@dataclass(frozen=True)
class Pem:
    cert_file: str
    key_file: str


class Authority:
    """Writes into `folder`, which it makes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self.ca_file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.ca_file)

    def client_context(self, pem: Pem | None = None) -> ssl.SSLContext:
        """Of a client that trusts this authority, and shows a certificate if it is given one."""
        own = (pem.cert_file, pem.key_file) if pem is not None else ("", "")
        return PemFiles(self.ca_file, *own).client_context()

    def issue(self, name: str, *identities: str, expired: bool = False) -> Pem:
        """A certificate for `identities`, host names or addresses; loopback's when there are none."""
        now = datetime.datetime.now(datetime.UTC)
        times = (
            (now - datetime.timedelta(days=2), now - datetime.timedelta(days=1)) if expired else (None, None)
        )
        leaf = self._ca.issue_cert(
            *(identities or ("127.0.0.1", "localhost")), not_before=times[0], not_after=times[1]
        )
        pem = Pem(str(self._folder / f"{name}.pem"), str(self._folder / f"{name}.key"))
        leaf.private_key_pem.write_to_path(pem.key_file)
        Path(pem.cert_file).write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return pem
