"""Tiny vision-language models of many families, each with its own processor, built from nothing.

A processor is made of the family's own classes and a byte-level tokenizer that has the tokens of
all of them. The sizes are such that a picture is a few dozen tokens.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.zoo import _merged
from tests.zoo.shrink import shrink
from tests.zoo.weights import randomize

SPECIAL = [
    *("<pad>", "<bos>", "<eos>", "<image>", "<fake_token_around_image>", "<global-img>"),
    *("<end_of_utterance>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>", "<|START_OF_IMG|>"),
    *("<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"),
    *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", "[IMG]", "<image_soft_token>"),
    *("<start_of_image>", "<end_of_image>", "<imgpad>", "<|im_start|>", "<|im_end|>"),
    *("<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>"),
    *(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)),
]
_NAMED = {  # what processors ask their tokenizers for
    "image_token": "<image>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
    "image_boundary_token": "<fake_token_around_image>",
    "image_break_token": "<IMG_ROW>",
    "image_end_token": "<IMG_END>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}PLACEHOLDER{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIDE = 64
TILED = {"size": {"height": SIDE, "width": SIDE}, "max_patches": 4}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
CLIP = {"patch_size": 16, "image_size": SIDE, "num_attention_heads": 4}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of all families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    for name, token in _NAMED.items():
        setattr(made, name, token)
        setattr(made, f"{name}_id", made.convert_tokens_to_ids(token))
    return made


@dataclass(frozen=True)
class Family:
    """How a family's tiny model and processor are made."""

    processor: str  # class names
    image_processor: str
    images: dict[str, Any]  # arguments of the image processor
    more: dict[str, Any] = field(default_factory=dict)  # of the processor
    config: dict[str, Any] = field(default_factory=dict)
    placeholder: str = "<image>"
    token: str = "<image>"  # that the model's configuration calls a picture's
    video: bool = False  # the processor wants one for videos too, which needs torchvision


_LLAVA = {
    "patch_size": 16,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
_CROPPED = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
_SPLIT = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
_IDEFICS = {"scale_factor": 2, "vision_config": {"image_size": SIDE}}

FAMILIES: dict[str, Family] = {
    "llava": Family(
        *("LlavaProcessor", "clip.CLIPImageProcessorPil", _CROPPED, _LLAVA),
        config={"vision_config": CLIP},
    ),
    "vipllava": Family(
        *("LlavaProcessor", "clip.CLIPImageProcessorPil", _CROPPED, _LLAVA),
        config={"vision_config": CLIP, "vision_feature_layers": [-1, -2]},
    ),
    "llava_next": Family(
        "LlavaNextProcessor",
        "llava_next.LlavaNextImageProcessorPil",
        {**_CROPPED, "image_grid_pinpoints": PINPOINTS},
        _LLAVA,
        {"vision_config": CLIP, "image_grid_pinpoints": PINPOINTS},
    ),
    "llava_onevision": Family(
        "LlavaOnevisionProcessor",
        "llava_onevision.LlavaOnevisionImageProcessorPil",
        {"size": {"height": SIDE, "width": SIDE}, "image_grid_pinpoints": PINPOINTS},
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        {"vision_config": CLIP, "image_grid_pinpoints": PINPOINTS},
        video=True,
    ),
    "idefics2": Family(
        "Idefics2Processor",
        "idefics2.Idefics2ImageProcessorPil",
        {"size": {"longest_edge": SIDE, "shortest_edge": 32}, "do_image_splitting": False},
        {"image_seq_len": 4},
        {
            "text_config": {"sliding_window": None},
            "vision_config": {"image_size": SIDE, "patch_size": 16},
            "perceiver_config": {"resampler_n_latents": 4},
        },
    ),
    "idefics3": Family(
        *("Idefics3Processor", "idefics3.Idefics3ImageProcessorPil", _SPLIT),
        *({"image_seq_len": 4}, _IDEFICS),
    ),
    "smolvlm": Family(
        *("SmolVLMProcessor", "smolvlm.SmolVLMImageProcessorPil", _SPLIT),
        *({"image_seq_len": 4}, _IDEFICS),
        video=True,
    ),
    "internvl": Family(
        *("InternVLProcessor", "got_ocr2.GotOcr2ImageProcessorPil", TILED),
        {"image_seq_length": 4},
        {
            "image_seq_length": 4,
            "vision_config": {"patch_size": [16, 16], "image_size": [SIDE, SIDE]},
        },
        *("<IMG_CONTEXT>", "<IMG_CONTEXT>"),
        video=True,
    ),
    "aria": Family(
        "AriaProcessor",
        "aria.AriaImageProcessorPil",
        {"max_image_size": 490, "min_image_size": 336},
        {"size_conversion": {490: 8, 980: 16}},
        {
            "vision_config": {"image_size": 490, "patch_size": 70},
            "projector_patch_to_query_dict": {49: 8, 196: 16},
        },
    ),
    "ovis2": Family(
        "Ovis2Processor",
        "ovis2.Ovis2ImageProcessorPil",
        {"size": {"height": SIDE, "width": SIDE}, "crop_to_patches": True, "max_patches": 4},
        {"image_seq_length": 4},
        {
            "vision_config": {"image_size": SIDE, "patch_size": 16, "hidden_stride": 2},
            "visual_indicator_token_ids": [
                SPECIAL.index(f"<IMG_{x}>") for x in ("START", "GRID", "COL", "ROW", "END")
            ],
        },
        token="<IMG_ATOM>",
    ),
    "qianfan_ocr": Family(
        *("QianfanOCRProcessor", "got_ocr2.GotOcr2ImageProcessorPil", TILED),
        {"image_seq_length": 4},
        {
            "image_seq_length": 4,
            "vision_config": {"patch_size": [16, 16], "image_size": [SIDE, SIDE]},
        },
        token="<IMG_CONTEXT>",
    ),
    "deepseek_vl": Family(
        "DeepseekVLProcessor",
        "deepseek_vl.DeepseekVLImageProcessorPil",
        {"size": {"height": SIDE, "width": SIDE}},
        {"num_image_tokens": 16},
        {"vision_config": {"image_size": SIDE, "patch_size": 16}},
    ),
    "lighton_ocr": Family(
        "LightOnOcrProcessor",
        "pixtral.PixtralImageProcessorPil",
        {"size": {"longest_edge": 128}, "patch_size": {"height": 32, "width": 32}},
        {"patch_size": 16, "spatial_merge_size": 2},
        {"vision_config": {"image_size": 128, "patch_size": 16}, "spatial_merge_size": 2},
    ),
    "aya_vision": Family(
        *("AyaVisionProcessor", "got_ocr2.GotOcr2ImageProcessorPil", TILED),
        {"patch_size": 16, "img_size": SIDE, "downsample_factor": 2},
        token="<|IMG_PATCH|>",
    ),
    "gemma3": Family(
        "Gemma3Processor",
        "gemma3.Gemma3ImageProcessorPil",
        {"size": {"height": SIDE, "width": SIDE}},
        {"image_seq_length": 4},
        {"mm_tokens_per_image": 4, "vision_config": {"image_size": SIDE, "patch_size": 16}},
        placeholder="<start_of_image>",
    ),
    "qwen2_vl": Family(
        *("Qwen2VLProcessor", "qwen2_vl.Qwen2VLImageProcessorPil"),
        {"patch_size": 14, "min_pixels": 28 * 28, "max_pixels": 112 * 112},
        config={
            "text_config": {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 3, 3],
                }
            }
        },
        video=True,
    ),
}


def config(name: str, **overrides: Any) -> Any:
    """Return the tiny configuration of a family."""
    family, default = FAMILIES[name], CONFIG_MAPPING[name]()
    values = _merged(shrink(default), {"text_config": {"vocab_size": 320}})
    made = type(default)(**_merged(_merged(values, family.config), overrides))
    for place in ("image_token_id", "image_token_index"):
        if hasattr(made, place):
            setattr(made, place, SPECIAL.index(family.token))
    return made


def model(name: str, seed: int = 0, **overrides: Any) -> transformers.PreTrainedModel:
    """Return a tiny random model of a family on CPU, in float32 and eval mode."""
    torch.manual_seed(seed)
    made = AutoModelForImageTextToText.from_config(config(name, **overrides), dtype=torch.float32)
    return randomize(made, seed).eval()


def processor(name: str) -> Any:
    """Return the family's own processor around `tokenizer`, with a chat template."""
    family = FAMILIES[name]
    folder, kind = family.image_processor.split(".")
    place = f"transformers.models.{folder}.image_processing_pil_{folder}"
    images = getattr(import_module(place), kind)(**family.images)
    template = CHAT_TEMPLATE.replace("PLACEHOLDER", family.placeholder)
    arguments = {"tokenizer": tokenizer(), "chat_template": template, **family.more}
    made: Callable[..., Any] = getattr(transformers, family.processor)
    if name == "smolvlm":  # writes numbers of videos' frames in words
        vars(import_module("transformers.models.smolvlm.processing_smolvlm"))["num2words"] = str
    if family.video:
        made = _without_videos(made)
        arguments["video_processor"] = None
    return made(images, **arguments)


def _without_videos(kind: Any) -> Any:
    """A processor's class that takes None in place of what reads videos."""

    class WithoutVideos(kind):
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return type(argument)

    WithoutVideos.__name__ = kind.__name__
    return WithoutVideos


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture of noise."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))


def png(width: int, height: int, seed: int = 0) -> bytes:
    """Return a picture of noise as a file."""
    out = io.BytesIO()
    picture(width, height, seed).save(out, "PNG")
    return out.getvalue()
