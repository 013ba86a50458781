"""Which paths are what."""

INFERENCE_PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
    )
)

TEXT_STREAMS = ("/v1/chat/completions", "/v1/completions")
"""The two whose streams are chunks of text: usage can be asked for in them, and they can be continued."""

ADMINISTRATION = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""vLLM has these under /v1/, yet they change the engine for everybody."""

FILES_PREFIX = "/page/"
"""Where the live page's files are, but the one at `/`."""


def is_file(path: str) -> bool:
    """Whether a path is one of the live page's files, which hold no data."""
    return path == "/" or path.startswith(FILES_PREFIX)


def label(path: str) -> str:
    """A path as a metric label: outsiders cannot make up new ones."""
    return path if path in INFERENCE_PATHS else "other"
