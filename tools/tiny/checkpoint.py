# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoint's files besides its weights: tokenizer, chat template, configs."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Glm4vConfig,
    Glm4vImageProcessor,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    PreTrainedTokenizerFast,
)

from tools.tiny.conversation import corpus
from tools.tiny.number_pictures import LONGEST_EDGE, SHORTEST_EDGE

BASE_VOCABULARY = 480
# The added tokens of GLM-4.1V-9B-Thinking, in its order, after the base vocabulary.
SPECIAL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|image|>", "<|video|>",
)  # fmt: skip
# Not special: they are part of the visible answer and survive skip_special_tokens.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# The real model also stops at </answer>. An engine leaves the stop token out of the text, so the
# tiny model writes </answer>, then stops at <|user|>, and its text is whole.
STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")

# The loop over `message.content` stands in the open: vLLM looks for it to learn that the template
# takes a list of parts. Behind a macro it is not found, and pictures and text are joined by vLLM.
CHAT_TEMPLATE = """\
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
  {{- '<|' ~ message.role ~ '|>\\n' -}}
  {%- if message.content is string -%}
    {{- message.content -}}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if part.type in ('image', 'image_url') -%}
        {{- '<|begin_of_image|><|image|><|end_of_image|>' -}}
      {%- elif part.type in ('video', 'video_url') -%}
        {{- '<|begin_of_video|><|video|><|end_of_video|>' -}}
      {%- elif part.type == 'text' -%}
        {{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>\\n' -}}
{%- endif -%}
"""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over the templates; every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=65536,
        clean_up_tokenization_spaces=False,
        processor_class="Glm4vProcessor",
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Glm4vProcessor:
    size = {"shortest_edge": SHORTEST_EDGE, "longest_edge": LONGEST_EDGE}
    video = {"shortest_edge": SHORTEST_EDGE, "longest_edge": 16 * LONGEST_EDGE}
    return Glm4vProcessor(
        Glm4vImageProcessor(size=size),
        tokenizer,
        Glm4vVideoProcessor(size=video, max_image_size={"longest_edge": 16 * LONGEST_EDGE}),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Glm4vConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 65536,
        "attention_bias": True,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 3, 3],
        },
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids[t] for t in STOP_TOKENS],
    }
    vision = {
        "depth": 4,
        "hidden_size": 128,
        "num_heads": 4,
        "intermediate_size": 256,
        "out_hidden_size": 128,
        "image_size": 112,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return Glm4vConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
        dtype="float32",
    )


def build_generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """The sampling of GLM-4.1V-9B-Thinking."""
    return GenerationConfig(
        do_sample=True, temperature=0.8, top_p=0.6, top_k=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.convert_tokens_to_ids(t) for t in STOP_TOKENS],
    )  # fmt: skip


def save_companions(folder: Path, processor: Glm4vProcessor) -> None:
    """Everything but config and weights, in the files the real model's repository has."""
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    processor.video_processor.save_pretrained(folder)
    build_generation_config(processor.tokenizer).save_pretrained(folder)
