"""The bodies of the generating endpoints, decoded and checked as vLLM checks them."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from dualmap_sim.engine.errors import bad_request, validation_error

Body = TypeVar("Body")
_AT = re.compile(r" - at `\$\.?([^`]*)`")


class StreamOptions(msgspec.Struct):
    """Whether usage comes with a stream, and with each of its chunks."""

    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False


class Sampling(msgspec.Struct, kw_only=True):
    """What chat and completions have in common; fields that change nothing here are accepted unseen."""

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    echo: bool | None = None

    @property
    def num_choices(self) -> int:
        """How many answers are wanted."""
        return 1 if self.n is None else self.n

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def usage(self) -> tuple[bool, bool]:
        """Whether a stream ends with its usage, and whether every chunk carries it."""
        options = self.stream_options
        if not self.stream or options is None:
            return False, False
        return bool(options.include_usage), bool(options.include_usage and options.continuous_usage_stats)

    def check_sampling(self) -> None:
        """Raise ApiError for values that vLLM refuses."""
        if self.stream_options is not None and not self.stream:
            raise validation_error("Stream options can only be defined when `stream=True`.", "stream_options")
        if self.num_choices < 1:
            raise bad_request(f"n must be at least 1, got {self.n}.", "n")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise bad_request(f"max_tokens must be at least 1, got {self.max_tokens}.", "max_tokens")
        if self.temperature is not None and self.temperature < 0:
            raise bad_request(f"temperature must be non-negative, got {self.temperature}.", "temperature")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise bad_request(f"top_p must be in (0, 1], got {self.top_p}.", "top_p")
        if self.cache_salt == "":
            raise validation_error(
                "Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt"
            )
        if "" in self.stops:
            raise bad_request("stop cannot contain an empty string.", "stop")
        if self.echo:
            raise bad_request("`echo` is not supported by the simulated engine.", "echo")


class ChatRequest(Sampling, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    logprobs: bool | None = None
    prompt_logprobs: int | None = None

    def check(self) -> None:
        """Raise ApiError for values that vLLM refuses."""
        if not self.messages:
            raise bad_request("`messages` must not be empty.", "messages")
        for index, message in enumerate(self.messages):
            if not isinstance(message.get("role"), str):
                raise validation_error("Field required: role", f"body.messages.{index}.role")
            if not isinstance(message.get("content"), str | list | None):
                raise validation_error("Input should be a valid string", f"body.messages.{index}.content")
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        if self.logprobs or self.prompt_logprobs is not None:
            raise bad_request("`logprobs` are not supported by the simulated engine.", "logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise validation_error(
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            )
        self.check_sampling()
        self._check_tools()

    def _check_tools(self) -> None:
        if self.tools is not None and not self.tools:
            raise validation_error("`tools` must not be an empty array.", "tools")
        names = [_tool_name(tool) for tool in self.tools or []]
        choice = self.tool_choice
        if choice is None or choice in ("none", "auto"):
            return
        if not names:
            raise validation_error("When using `tool_choice`, `tools` must be set.", "tool_choice")
        if isinstance(choice, str):
            if choice != "required":
                raise validation_error(f"Invalid value for `tool_choice`: {choice}!", "tool_choice")
        elif _tool_name(choice) not in names:
            message = "The tool specified in `tool_choice` does not match any of the specified `tools`"
            raise validation_error(message, "tool_choice")

    @property
    def forced_tool(self) -> tuple[Mapping[str, Any] | None, bool]:
        """The function to call, if one must be called, and whether the request names it."""
        tools = self.tools or []
        if isinstance(self.tool_choice, dict):
            name = _tool_name(self.tool_choice)
            return next(tool["function"] for tool in tools if _tool_name(tool) == name), True
        if self.tool_choice == "required":
            function: Mapping[str, Any] = tools[0]["function"]
            return function, False
        return None, False


class CompletionRequest(Sampling, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[Any]
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    suffix: str | None = None

    def check(self) -> None:
        """Raise ApiError for values that vLLM, or the simulated engine, refuses."""
        if self.logprobs is not None or self.prompt_logprobs is not None:
            raise bad_request("`logprobs` are not supported by the simulated engine.", "logprobs")
        if self.suffix:
            raise bad_request("suffix is not currently supported", "suffix")
        self.check_sampling()

    def single_prompt(self) -> str | list[int]:
        """The one prompt: its text or its token ids."""
        prompt: Any = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise bad_request("The simulated engine takes one prompt per request.", "prompt")
            prompt = prompt[0]
        if not isinstance(prompt, str | list):
            raise validation_error("Input should be a string or a list of token ids", "body.prompt")
        if not prompt:
            raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        if isinstance(prompt, str):
            return prompt
        if not all(type(token) is int and 0 <= token < 2**32 for token in prompt):
            raise bad_request("A token id is out of vocabulary.", "prompt")
        return prompt


def _tool_name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise validation_error("Expected field `name` in `function`.", "body.tools.function.name")
    return name


def decode_body(content_type: str, body: bytes, kind: type[Body]) -> Body:
    """Decode a JSON body into `kind`; ApiError 400 in vLLM's shape if it is not of that shape."""
    if content_type.split(";", 1)[0].strip().lower() != "application/json":
        raise validation_error("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _AT.search(text)
        place = re.sub(r"\[(\.\.\.|\d+)\]", "", found.group(1)) if found else ""
        missing = re.search(r"missing required field `(\w+)`", text)
        field = ".".join(part for part in (place, missing.group(1) if missing else "") if part)
        raise validation_error(_AT.sub("", text), f"body.{field}" if field else "body") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise validation_error(f"JSON decode error: {error}", "body") from error
