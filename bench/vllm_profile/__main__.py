"""`python -m bench.vllm_profile --engine-url ...`: measure a vLLM that has nothing else to do, print its profile."""

import argparse
import asyncio
import sys

from bench.vllm_profile.measure import ProfileError, measure
from bench.vllm_profile.report import text

UNCACHED = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
CACHED = (0, 1024, 4096, 16384, 65536)


def _tokens(given: str) -> tuple[int, ...]:
    return tuple(int(number) for number in given.split(","))


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.vllm_profile", description=__doc__)
    parser.add_argument("--engine-url", required=True, help="a vLLM with --enable-prompt-tokens-details")
    parser.add_argument("--name", default="measured", help="of the profile")
    parser.add_argument("--uncached", type=_tokens, default=UNCACHED, metavar="N,N,...")
    parser.add_argument("--cached", type=_tokens, default=CACHED, metavar="N,N,...")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    try:
        measured = asyncio.run(measure(given.engine_url, given.uncached, given.cached, given.repeats))
    except ProfileError as error:
        sys.exit(str(error))
    print(text(given.name, measured))


if __name__ == "__main__":
    main()
