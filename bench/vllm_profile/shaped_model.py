"""`python -m bench.vllm_profile.shaped_model FOLDER`: a model of Qwen2.5-7B's shape, without its weights.

For `vllm serve FOLDER --load-format dummy`: the prefill of random weights takes as long as that of real ones.
Nothing is downloaded; the tokenizer has one token per byte.
"""

import json
import sys
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "bfloat16",
}
"""The shape that Qwen2.5-7B publishes."""
_SPECIAL = ("<s>", "</s>")


def byte_letters() -> list[str]:
    """The letter of each byte in byte-level tokenizers: its own where that prints, else one from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def tokenizer() -> dict[str, Any]:
    """A tokenizer.json without merges."""
    letters = byte_letters()
    special = [
        {"id": 256 + number, "content": name, "special": True, "single_word": False, "lstrip": False}
        | {"rstrip": False, "normalized": False}
        for number, name in enumerate(_SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {letter: byte for byte, letter in enumerate(letters)}
            | {name: 256 + number for number, name in enumerate(_SPECIAL)},
            "merges": [],
        },
    }


def make(folder: Path) -> None:
    """Write configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    for name, content in (
        ("config.json", CONFIG),
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", about),
    ):
        (folder / name).write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
