"""Ids and names under a salt: equal ones stay equal, and nobody without the salt can test a guess."""

import hashlib

_ID_BITS = 53
"""What every JSON reader holds exactly."""


class Salted:
    """Stand-ins for what must not be written out; the same salt gives the same ones."""

    def __init__(self, salt: str) -> None:
        self._key = hashlib.blake2b(salt.encode("utf-8", "surrogatepass")).digest()

    def block(self, what: bytes) -> int:
        """The id of a prompt block, or of anything that stands for its prefix."""
        digest = hashlib.blake2b(what, key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") >> (64 - _ID_BITS)

    def name(self, what: str) -> str:
        """A pseudonym of a tenant or a session."""
        raw = what.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, key=self._key, digest_size=6, person=b"name").hexdigest()

    @property
    def seed(self) -> str:
        """A secret for the hashes of chunks."""
        return hashlib.blake2b(b"seed", key=self._key, digest_size=16).hexdigest()
