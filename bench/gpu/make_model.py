#!/usr/bin/env python3
"""Writes a model to measure with: the geometry of Qwen3-0.6B, random weights, a tokenizer.

    python3 bench/gpu/make_model.py FOLDER [--text FILE ...] [--layers N]

Weights are drawn as transformers initialises them, from a fixed seed, and stored in bf16. The
tokenizer is a byte-level BPE trained on the text given (this file, if none is): whatever the model
says can be decoded up to its last id, and ids beyond it are no text, as in a vocabulary that was
padded. Needs torch, transformers and tokenizers, and no network.
"""

import argparse
import pathlib

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

EOS = "<|endoftext|>"


def tokenizer(texts: list[pathlib.Path]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(path) for path in texts], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--text", type=pathlib.Path, nargs="+", default=[pathlib.Path(__file__)])
    arguments.add_argument("--layers", type=int, default=28)
    asked = arguments.parse_args()
    words = tokenizer(asked.text)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=asked.layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        rope_theta=1_000_000.0,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(asked.folder)
    words.save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
