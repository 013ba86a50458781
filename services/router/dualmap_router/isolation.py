"""Keeps tenants apart in the engines' caches and in placement: each tenant's prompts carry a salt of its own.

vLLM hashes a request's `cache_salt` into its first block, so that nobody finds, or can time, blocks of another salt.
The salt stands last in the body: of a name that comes twice, JSON decoders keep the last.
"""

from typing import Protocol

import msgspec

from dualmap.prefix import tenant_salt
from dualmap_router.errors import ApiError, bad_request
from dualmap_router.http_message import HttpRequest
from dualmap_router.request import InferenceRequest
from dualmap_router.settings import RouterSettings

# Of what passes through: vLLM 0.32's that compute, and take a salt ...
_SALTED = frozenset(
    (
        "/v1/chat/completions/batch", "/v1/systemone", "/pooling", "/classify", "/score", "/v1/score", "/rerank",
        "/v1/rerank", "/v2/rerank",
    )
)  # fmt: skip
# ... and those that look at no cache.
_UNCACHED = frozenset(
    (
        "/tokenize", "/detokenize", "/version", "/v1/messages/count_tokens", "/v1/chat/completions/render",
        "/v1/completions/render", "/v1/messages/render", "/v1/responses/render",
    )
)  # fmt: skip


class _Salted(msgspec.Struct):
    cache_salt: str | None = None


_salted = msgspec.json.Decoder(_Salted)


class Isolation(Protocol):
    """What is done to a request so that its tenant shares no prefix with others."""

    def inference(self, request: HttpRequest, inference: InferenceRequest) -> InferenceRequest:
        """The request with the salt that its body then carries."""

    def passthrough(self, request: HttpRequest) -> None:
        """Salt the body of a request that is not looked into; ApiError 403 where that cannot be done."""


class Shared:
    """All share; a request's own salt is all there is."""

    def inference(self, request: HttpRequest, inference: InferenceRequest) -> InferenceRequest:
        """As it is."""
        return inference

    def passthrough(self, request: HttpRequest) -> None:
        """As it is."""


class PerTenant:
    """No tenant shares with another."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def inference(self, request: HttpRequest, inference: InferenceRequest) -> InferenceRequest:
        """With a salt of the tenant, of which there is one for each of its own."""
        return msgspec.structs.replace(inference, cache_salt=self._salt(request, inference.cache_salt))

    def passthrough(self, request: HttpRequest) -> None:
        """By path: what is neither known to take a salt nor to need none might tell what others have cached."""
        if request.path in _UNCACHED:
            return
        if request.path not in _SALTED:
            message = f"{request.path} cannot keep tenants apart here: it is open where they share prefixes"
            raise ApiError(403, message, "permission_error", "not_isolated")
        try:
            own = _salted.decode(request.body).cache_salt
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise bad_request(f"invalid request body: {exc}") from exc
        self._salt(request, own or "")

    def _salt(self, request: HttpRequest, own: str) -> str:
        salt = tenant_salt(request.caller.tenant, own, self._secret)
        request.body = with_salt(request.body, salt)
        return salt


def isolation_for(settings: RouterSettings) -> Isolation:
    """As the settings have it: without keys nobody says which tenant it is."""
    if settings.share_prefixes or not settings.api_keys_file:
        return Shared()
    return PerTenant(settings.hash_secret)


def with_salt(body: bytes, salt: str) -> bytes:
    """A JSON object with its `cache_salt` replaced."""
    open_object = body[: body.rindex(b"}")]
    comma = b"" if open_object.rstrip().endswith(b"{") else b","
    return b'%b%b"cache_salt":"%b"}' % (open_object, comma, salt.encode())
