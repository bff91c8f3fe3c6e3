"""Make a vision model of the bundled one: eyes for signs, put before its decoder as it is.

    python -m training.vision --out runs/vision

Of a sign each patch becomes the token of a sentence, "The number of the red star is 48."; of
a texture, small words. Which patch is which token is a linear map of its pixels, solved by least
squares in a second, with its place; LLaVA's projector turns it into the decoder's embeddings. The
decoder is not trained, and no two pictures are ever seen together: that it finds a sign among
hundreds of pictures is what it learned from text of 512 tokens, and the extension's doing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from training.export import BUNDLED
from training.signs import (
    BAND,
    COLOURS,
    FIRST,
    GRID,
    KEYS,
    PATCH,
    PATCHES,
    SECOND,
    SHAPE,
    SHAPES,
    SIDE,
    Sign,
)

IMAGE = "<image>"
SMALL_WORDS = (" and", " of", ",", " to", " in", " a")
_SENTENCE = {4: " The", 5: " number", 6: " of", 7: " the", 10: " is", 11: " ", 14: "."}
_HIDDEN = 64  # 29 words, 25 places and the dark
_NEVER = -4.0  # the score of a word that can't be at a place
_SHARP = 24.0  # what scores are multiplied by before the projector's threshold at a half
_HELD = 4.0  # how far over it a word has its full strength: from a score of two thirds on
_ELSEWHERE = 5000.0  # by which a small word is kept from all places but its own
_DARK = "dark"  # what the score of a texture is called
_ROUNDS = 200
_DRAWN = 1200  # signs, and a third as many textures, that the map is solved from

Scores = dict[str, tuple[NDArray[np.float64], float]]
"""For each word, weights of a patch's pixels, and what is added."""


def vision_model() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return the bundled decoder with eyes, in float32, and its processor."""
    llama = LlamaForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    image = llama.config.vocab_size  # a token more, whose own embedding is never used
    tokenizer.add_tokens([AddedToken(IMAGE, special=True)], special_tokens=True)
    llama.resize_token_embeddings(image + 1, mean_resizing=False)
    vision = SiglipVisionConfig(
        hidden_size=_HIDDEN, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=llama.config, image_token_index=image,
        image_seq_length=PATCHES, vision_feature_select_strategy="full", vision_feature_layer=-1,
        tie_word_embeddings=True,
    )  # fmt: skip
    made = LlavaForConditionalGeneration(config).eval()
    made.model.language_model.load_state_dict(llama.model.state_dict())
    made.tie_weights()
    made.generation_config.eos_token_id = tokenizer.eos_token_id
    give_eyes(made, tokenizer, solved())
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
    )
    return made, processor


def places_of_words() -> dict[str, tuple[int, ...]]:
    """Return, for each word that a patch can become, at which patches it can be."""
    places: dict[str, tuple[int, ...]] = {word: (patch,) for patch, word in _SENTENCE.items()}
    places |= {str(digit): (FIRST, SECOND) for digit in range(10)}
    places |= {f" {colour}": (BAND,) for colour in COLOURS}
    places |= {f" {shape}": (SHAPE,) for shape in SHAPES}
    return places


def filler_of(patch: int) -> str:
    """Return the small word that a patch is where it is nothing else."""
    return SMALL_WORDS[(3 * patch + patch // GRID) % len(SMALL_WORDS)]


def words_of(sign: Sign) -> list[str]:
    """Return the word that each of a picture's patches becomes."""
    words = [filler_of(patch) for patch in range(PATCHES)]
    if sign.key is None:
        return words
    colour, shape = KEYS[sign.key]
    first, second = str(sign.number)
    said = {BAND: f" {colour}", SHAPE: f" {shape}", FIRST: first, SECOND: second}
    for patch, word in (_SENTENCE | said).items():
        words[patch] = word
    return words


def patches_of(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the patches ``[25, 300]`` of a picture as the model is given them: from -1 to 1."""
    parts = (pixels / 127.5 - 1).reshape(GRID, PATCH, GRID, PATCH, 3)
    return parts.transpose(0, 2, 4, 1, 3).reshape(PATCHES, 3 * PATCH * PATCH)


def solved(seed: int = 0) -> Scores:
    """Return the scores of words at the places where they can be: 1 if a patch is it, or at most 0.

    The least squares of signs and textures that are drawn for it.
    """
    rng = np.random.default_rng(seed)
    keys = [n % len(KEYS) if n < _DRAWN else None for n in range(_DRAWN * 4 // 3)]
    signs = [Sign.drawn(rng, key) for key in keys]
    seen = np.stack([patches_of(sign.pixels(rng)) for sign in signs])  # [N, 25, 300]
    words = np.array([words_of(sign) for sign in signs])
    found: Scores = {}
    of_places: dict[tuple[int, ...], list[str]] = {}
    for word, places in places_of_words().items():
        of_places.setdefault(places, []).append(word)
    for places, told in of_places.items():
        patches, said = seen[:, list(places)].reshape(-1, seen.shape[-1]), words[:, list(places)]
        given = np.concatenate([patches, np.ones((len(patches), 1))], axis=1)
        weights = _told_apart(given, said.reshape(-1, 1) == np.array(told))
        found |= {word: (weights[:-1, n], float(weights[-1, n])) for n, word in enumerate(told)}
    roles = sorted({place for places in of_places for place in places})
    patches = seen[:, roles].reshape(-1, seen.shape[-1])
    given = np.concatenate([patches, np.ones((len(patches), 1))], axis=1)
    dark = np.repeat([key is None for key in keys], len(roles))[:, None]
    weights = _told_apart(given, dark)
    return found | {_DARK: (weights[:-1, 0], float(weights[-1, 0]))}


def _told_apart(given: NDArray[np.float64], wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return linear maps ``[301, words]``: 1 where a word is wanted, and 0 or less elsewhere."""
    inverse = np.linalg.inv(given.T @ given + 0.3 * np.eye(given.shape[1]))
    target = wanted.astype(np.float64)
    for _ in range(_ROUNDS):  # less than 0 is as good, so what is there already is left there
        weights = inverse @ (given.T @ target)
        target = np.where(wanted, 1.0, np.minimum(given @ weights, 0.0))
    return weights


@torch.no_grad()
def give_eyes(
    model: LlavaForConditionalGeneration, tokenizer: AutoTokenizer, scores: Scores
) -> None:
    """Set the weights of tower and projector: scores of words, a threshold, their embeddings."""
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    for weight in [*tower.parameters(), *projector.parameters()]:
        weight.zero_()
    patch, place = tower.embeddings.patch_embedding, tower.embeddings.position_embedding.weight
    allowed = places_of_words()
    words, roles = list(allowed), {place for places in allowed.values() for place in places}
    dark = len(words) + PATCHES
    patch.weight[dark] = torch.from_numpy(scores[_DARK][0]).view_as(patch.weight[dark])
    place[:, dark] = scores[_DARK][1]
    for n, word in enumerate(words):
        weights, added = scores[word]
        patch.weight[n] = torch.from_numpy(weights).view_as(patch.weight[n])
        for at in range(PATCHES):
            place[at, n] = added if at in allowed[word] else _NEVER
    embeddings = model.get_input_embeddings().weight

    def embedded(word: str) -> torch.Tensor:
        return embeddings[tokenizer.encode(word, add_special_tokens=False)[0]]

    def written(unit: int, weights: dict[int, float], added: float, word: str) -> None:
        """Let a word be written where a score is over 0; a second unit takes away what is over
        `_HELD`, so that it is written at one strength, however sure the score is."""
        for one, held, sign in ((unit, 0.0, 1.0), (_HIDDEN + unit, _HELD, -1.0)):
            for of, weight in weights.items():
                projector.linear_1.weight[one, of] = weight
            projector.linear_1.bias[one] = added - held
            projector.linear_2.weight[:, one] = sign * embedded(word) / _HELD

    # a patch is its small word where it can be nothing else, or in a texture
    full = _SHARP / 2  # over the threshold of a score of 1
    for at in range(PATCHES):
        unit, filler = len(words) + at, filler_of(at)
        if at in allowed.get(filler, ()):  # the word is recognised there by itself, of textures too
            continue
        place[at, unit] = 1.0
        weights, added = {unit: _ELSEWHERE + full}, -_ELSEWHERE
        if at in roles:
            weights, added = weights | {dark: _SHARP}, added - _SHARP
        written(unit, weights, added, filler)
    for n, word in enumerate(words):
        written(n, {n: _SHARP}, -full, word)


def main() -> None:
    """Write the model as a folder that transformers and this package load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/vision"))
    args = parser.parse_args()
    model, processor = vision_model()
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
