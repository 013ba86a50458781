"""Makes a tiny Llama with a byte-level tokenizer, and LoRA adapters for it; run by vLLM's own Python.

All weights are random, since what is tested is what stands around the model; but they are far enough apart for a
greedy answer to be the same whatever is batched or cached with it. Arguments: the model's folder, and one folder for
each adapter.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% if tools %}{{ tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<' + m['role'] + '>' + (m['content'] or '') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
HIDDEN = 256
LAYERS = 2
RANK = 8
SPREAD = 0.2


def make_model(folder: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog "], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=SPREAD,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def make_adapter(folder: Path, model: str, seed: int) -> None:
    """A LoRA adapter in PEFT's files, far enough from zero to change what the model says."""
    torch.manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        for target in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN) * SPREAD
            weights[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, RANK) * SPREAD
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "base_model_name_or_path": model,
        "bias": "none",
        "lora_alpha": RANK,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    model_folder, *adapter_folders = sys.argv[1:]
    make_model(model_folder)
    for seed, adapter_folder in enumerate(adapter_folders, start=1):
        make_adapter(Path(adapter_folder), model_folder, seed)
