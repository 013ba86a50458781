"""Attacks on a router, as bytes: what each is called, what it sends and what it must get.

A case that needs more than bytes on one connection is a test of its own in test_attacks.py.
"""

import json
from dataclasses import dataclass

from .guarded import ACME, CHAT, OTHER, TEXT

KEY = f"authorization: Bearer {ACME}"


@dataclass(frozen=True)
class Attack:
    """One connection's bytes."""

    name: str
    data: bytes
    gets: tuple[int, ...]
    """The status of each answer on the connection."""
    says: str = ""
    """In the last answer's body."""
    reaches: int = 0
    """Requests that the engine gets of it."""


def head(
    *headers: str, method: str = "POST", target: str = CHAT, key: str = KEY, version: str = "1.1"
) -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "host: router", *([key] if key else []), *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def body(**fields: object) -> bytes:
    return json.dumps(
        {"model": "sim-model", "messages": [{"role": "user", "content": "hi"}], **fields}
    ).encode()


def post(*headers: str, data: bytes = body(), **kind: str) -> bytes:
    own = ("content-type: application/json", f"content-length: {len(data)}", "connection: close")
    return head(*headers, *own, **kind) + data


def chunks(*sizes_and_data: bytes, more: tuple[str, ...] = ()) -> bytes:
    return head("content-type: application/json", "transfer-encoding: chunked", *more) + b"".join(
        sizes_and_data
    )


HI = body()
HEX = b"%x" % len(HI)
# What is hidden behind or inside of each: a whole request of its own, which must never be one.
HIDDEN = post(data=body(smuggled=True))


SMUGGLING = [
    Attack("content-length before transfer-encoding",
        head(f"content-length: {len(HI)}", "transfer-encoding: chunked") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("transfer-encoding before content-length",
        chunks(b"0\r\n\r\n", HIDDEN, more=("content-length: 4",)), (400,)),
    Attack("two lengths that differ", head("content-length: 0", f"content-length: {len(HIDDEN)}") + HIDDEN, (400,)),
    Attack("one length twice", head("content-length: 0", "content-length: 0") + HIDDEN, (400,)),
    Attack("a list of lengths", head("content-length: 0, 0") + HIDDEN, (400,)),
    Attack("a length with a sign", head("content-length: +0") + HIDDEN, (400,)),
    Attack("a negative length", head("content-length: -1") + HIDDEN, (400,)),
    Attack("a hexadecimal length", head("content-length: 0x0") + HIDDEN, (400,)),
    Attack("an empty length", head("content-length: ") + HIDDEN, (400,)),
    Attack("a length beyond 64 bits", head(f"content-length: {1 << 64}") + HIDDEN, (400,)),
    Attack("a coding besides chunked", head("transfer-encoding: gzip, chunked") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("chunked twice", head("transfer-encoding: chunked, chunked") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("chunked not last", head("transfer-encoding: chunked, identity") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("a coding nobody knows", head("transfer-encoding: xchunked") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("two transfer-encodings",
        head("transfer-encoding: chunked", "transfer-encoding: identity") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("a space before the colon", head("transfer-encoding : chunked") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("a control character before chunked",
        head("transfer-encoding: \x0bchunked") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("chunked in HTTP/1.0", head("transfer-encoding: chunked", version="1.0") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("a folded transfer-encoding", head("transfer-encoding:", " chunked") + b"0\r\n\r\n" + HIDDEN, (400,)),
    Attack("a folded header", head("x-a: b", " c", "content-length: 0") + HIDDEN, (400,)),
    Attack("a header behind a bare LF", head("x-a: b\ncontent-length: 0") + HIDDEN, (400,)),
    Attack("a header behind a bare CR", head("x-a: b\rcontent-length: 0") + HIDDEN, (400,)),
    Attack("bare LFs all over", head("content-length: 0").replace(b"\r\n", b"\n") + HIDDEN, (400,)),
    Attack("NUL in a value", head("x-a: b\0c", "content-length: 0") + HIDDEN, (400,)),
    Attack("NUL in a name", head("x-a\0: b", "content-length: 0") + HIDDEN, (400,)),
    Attack("NUL in the target", head("content-length: 0", target="/v1/a\0b") + HIDDEN, (400,)),
    Attack("a line without a colon", head("nonsense", "content-length: 0") + HIDDEN, (400,)),
    Attack("a length among the trailers", chunks(HEX, b"\r\n", HI, b"\r\n0\r\ncontent-length: 9\r\n\r\n"), (400,)),
]  # fmt: skip

CHUNKS = [
    Attack("a chunk size that is no number", chunks(b"zz\r\n", HI), (400,)),
    Attack("a negative chunk size", chunks(b"-1\r\n", HI), (400,)),
    Attack("a chunk size with 0x", chunks(b"0x1\r\na\r\n0\r\n\r\n"), (400,)),
    Attack("a chunk size beyond 64 bits", chunks(b"1", b"0" * 16, b"\r\n", HI), (400,)),
    Attack("a chunk longer than its size", chunks(b"1\r\n", HI, b"\r\n0\r\n\r\n"), (400,)),
    Attack("a chunk size before a bare LF", chunks(b"1\na\r\n0\r\n\r\n"), (400,)),
    Attack("a chunk extension without an end", chunks(b"1;", b"a" * 400_000), (400,)),
    Attack("many small chunk extensions", chunks(*[b"1;" + b"a" * 200 + b"\r\n \r\n"] * 3000), (400,)),
    Attack("a chunk larger than any body", chunks(b"ffffffff\r\n", b"a" * (3 << 20)), (413,)),
]  # fmt: skip

LARGE = [
    Attack("ten thousand headers", post(*(f"x-{n}: v" for n in range(10_000))), (431,)),
    Attack("three hundred small headers", post(*(f"x-{n}: v" for n in range(300))), (431,)),
    Attack("a header of a megabyte", post("x-big: " + "a" * (1 << 20)), (431,)),
    Attack("a target of a megabyte", post(target="/v1/" + "a" * (1 << 20)), (431,)),
    Attack("endless trailers", chunks(b"0\r\n", *[b"x-a: " + b"a" * 1000 + b"\r\n"] * 100), (431,)),
    Attack("a body over the limit", head(f"content-length: {3 << 20}") + b"a" * (3 << 20), (413,)),
    Attack("JSON nested beyond reason", post(data=b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), (400,)),
]  # fmt: skip

TARGETS = [
    Attack("no host", head("content-length: 0").replace(b"host: router\r\n", b""), (400,)),
    Attack("two hosts", post("host: elsewhere"), (400,)),
    Attack("a whole URL of another host", post(target="http://169.254.169.254/latest/meta-data"), (404,)),
    Attack("a URL that is no HTTP", post(target="file:///etc/passwd"), (400,)),
    Attack("a target without a path", post(target="engine:8100"), (400,)),
    Attack("a fragment that hides an endpoint", post(target=CHAT + "#x"), (400,)),
    Attack("dots out of the API", post(target="/v1/../admin/crash"), (404,)),
    Attack("encoded dots out of the API", post(target="/v1/%2e%2e/admin/crash"), (404,)),
    Attack("dots encoded twice", post(target="/v1/%252e%252e/admin/crash"), (403,)),
    Attack("an engine's administration", post(target="/reset_prefix_cache"), (404,)),
    Attack("another tenant's stored answer", head("connection: close", method="GET", target="/v1/responses/r"), (403,)),
    Attack("a tunnel", head(method="CONNECT", target="engine:8100") + HIDDEN, (405,)),
    Attack("an echo of the headers", head("connection: close", method="TRACE"), (405,)),
    Attack("HTTP/2 without a word", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    Attack("TLS where HTTP is spoken", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400,)),
]  # fmt: skip

KEYS = [
    Attack("no key", post(key=""), (401,), "wants an API key"),
    Attack("a wrong key", post(key=f"authorization: Bearer {ACME}x"), (401,), "not one of this service"),
    Attack("a key's hash as the key", post(key="x-api-key: " + "0" * 64), (401,)),
    Attack("a key in the query", post(key="", target=f"{CHAT}?api_key={ACME}"), (401,)),
    Attack("a key in the body", post(key="", data=body(api_key=ACME, authorization=f"Bearer {ACME}")), (401,)),
    Attack("a good key beside a wrong one", post(f"x-api-key: {OTHER}x"), (401,), "not one API key"),
    Attack("two keys of two tenants", post(f"x-api-key: {OTHER}"), (401,), "not one API key"),
    Attack("a key by another scheme", post(key=f"authorization: Basic {ACME}"), (401,)),
    Attack("a key of fifty thousand characters", post(key="x-api-key: " + "a" * 50_000), (401,)),
    Attack("an open path that is another", post(key="", target="/healthz/../v1/chat/completions"), (401,)),
    Attack("an open path in a whole URL", head("connection: close", key="", method="GET", target="http://r/metrics"),
        (401,)),
    Attack("a request behind one without a key", head("content-length: 0", key="") + HIDDEN, (401,)),
    Attack("a large body without a key", head(f"content-length: {1 << 20}", key="") + b"a" * (1 << 20), (401,)),
    Attack("a body for a probe that needs no key", head(f"content-length: {1 << 20}", key="", method="GET",
        target="/healthz") + b"a" * (1 << 20), (413,)),
    Attack("chunks for a page that needs no key", head("transfer-encoding: chunked", key="", method="GET",
        target="/metrics") + b"1\r\na\r\n0\r\n\r\n", (413,)),
    Attack("a look inside by a tenant", post(target="/debug/explain"), (403,), "administrator"),
    Attack("a look inside, encoded", post(target="/%64ebug/explain"), (403,), "administrator"),
]  # fmt: skip

MORE = "asks for more than this key may"
URGENT = "x-dualmap-priority: -2147483648"
TWICE = HI[:-1] + b', "priority": -1, "priority": 0}'
PRIORITIES = [
    Attack("before everybody, by header", post(URGENT), (403,), MORE),
    Attack("before everybody, by vLLM's header", post("x-vllm-priority: -1"), (403,), MORE),
    Attack("... behind a modest one", post("x-vllm-priority: 0", "x-vllm-priority: -1"), (403,), MORE),
    Attack("... behind a modest one of ours", post("x-dualmap-priority: 0", "x-vllm-priority: -1"), (403,), MORE),
    Attack("before everybody, by the body", post(data=body(priority=-(2**63))), (403,), MORE),
    Attack("... behind a modest header", post("x-dualmap-priority: 0", data=body(priority=-1)), (403,), MORE),
    Attack("... its name in disguise", post(data=HI[:-1] + b', "prior\\u0069ty": -1}'), (403,), MORE),
    Attack("... its name twice", post(data=TWICE), (403,), MORE),
    Attack("... its name twice, once in disguise", post(data=HI[:-1] + b', "pr\\u0069ority": -1, "priority": 0}'),
        (403,), MORE),
    Attack("... as a text", post(data=body(priority="-1")), (400,), "priority"),
    Attack("before everybody, in a completion", post(target=TEXT, data=b'{"prompt": "x", "priority": -1}'), (403,),
        MORE),
    Attack("... in embeddings", post(target="/v1/embeddings", data=b'{"input": "x", "priority": -1}'), (403,), MORE),
    Attack("... in what is not looked into", post(target="/v1/rerank", data=b'{"query": "x", "priority": -1}'), (403,),
        MORE),
    Attack("... in JSON that only some read", post(target="/tokenize", data=b'{"prompt": NaN, "priority": -1}'), (403,),
        MORE),
    Attack("... in UTF-16", post(target="/tokenize", data='{"priority": -1}'.encode("utf-16")), (403,), MORE),
]  # fmt: skip

PASSING = [
    Attack("a request behind an honest body", post() + HIDDEN, (200,), reaches=1),
    Attack("an upgrade to HTTP/2", post("upgrade: h2c", "http2-settings: AAMAAABk"), (200,), reaches=1),
    Attack("another method by header", post("x-http-method-override: DELETE"), (200,), reaches=1),
    Attack("a length for an answer that has none", head("content-length: 0", "connection: close", method="GET",
        target="/healthz"), (200,)),
    Attack("a line end in the request's id", post("x-request-id: a%0d%0aset-cookie: b"), (200,), reaches=1),
    Attack("text that is not ASCII in a header", post("x-odd: \xff\xe9"), (200,), reaches=1),
    Attack("a priority that is no more urgent than others'", post("x-dualmap-priority: 3", data=body(priority=0)),
        (200,), reaches=1),
    Attack("a priority behind the body", head("transfer-encoding: chunked", "connection: close") + b"%b\r\n%b\r\n0\r\n"
        % (HEX, HI) + f"{URGENT}\r\nx-vllm-priority: -1\r\n\r\n".encode(), (200,), reaches=1),
    Attack("a body that is cut short", head("content-length: 100") + b"{", ()),
    Attack("a head that is cut short", head("content-length: 100")[:-2], ()),
    Attack("a completion through the chat's path", post(data=b'{"prompt": "x"}'), (400,)),
    Attack("an expectation nobody knows", post("expect: everything", target=TEXT, data=b'{"prompt": "x"}'), (200,),
        reaches=1),
]  # fmt: skip

KINDS = {
    "Two readings of one request (smuggling)": SMUGGLING,
    "Chunks": CHUNKS,
    "Too large": LARGE,
    "Targets": TARGETS,
    "Keys": KEYS,
    "Priorities that a key may not ask for": PRIORITIES,
    "What may look like one and is let through, or is no request": PASSING,
}
ATTACKS = [attack for attacks in KINDS.values() for attack in attacks]

_PAGE = """# Attacks that are tried with each change

`tests/integration/test_attacks.py` sends each of these to a router with API keys, in front of an engine that records
what reaches it, and sees that nothing else does: not the request that is hidden behind or inside of another, no
credential, no header of ours. Made by `python -m tests.integration.attacks > docs/attacks.md`.

What takes more than bytes on one connection is a test of its own there: heads, bodies and chunks that never end, a
thousand silent connections, headers that are not for the engine or not for the client, another tenant's cache,
guessed keys, clients that go while they are refused. What a client can make a router hold, and for how long, is in
`tests/services/router/test_http_patience.py`.
"""


def page() -> str:
    """docs/attacks.md."""
    lines = [_PAGE]
    for kind, attacks in KINDS.items():
        lines += [f"## {kind}\n", "| attack | gets | reaches the engine |", "|---|---|---|"]
        for attack in attacks:
            gets = ", ".join(map(str, attack.gets)) or "nothing: the connection is closed in time"
            lines.append(f"| {attack.name} | {gets} | {'once, as itself' if attack.reaches else 'no'} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
