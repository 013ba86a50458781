"""The engines of the comparison, which whoever follows them has to know."""

from dualmap_sim.engine import named_profile

PROFILE = named_profile("linear").override(block_size=64, num_kv_blocks=6720, stream_interval=16)
"""10,000 prompt tokens a second; room for 430,080 tokens, as everywhere in this repository. Blocks of 64 tokens and
chunks of 16 keep the engines' own CPU low, for every router alike."""
FLAGS = (
    "--profile", PROFILE.name,
    "--block-size", str(PROFILE.block_size),
    "--kv-blocks", str(PROFILE.num_kv_blocks),
    "--stream-interval", str(PROFILE.stream_interval),
)  # fmt: skip
