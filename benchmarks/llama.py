"""The peer that benchmarks are run beside: a Hugging Face Llama of the same shape."""

from __future__ import annotations

from typing import Any

from cehrxgpt.model.config import ModelConfig


def llama_of(shape: ModelConfig) -> Any:
    """A new `LlamaForCausalLM` of this width, depth, heads and vocabulary, in float32; no token ends what it writes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary_size,
            hidden_size=shape.width,
            intermediate_size=shape.feedforward_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.context,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
