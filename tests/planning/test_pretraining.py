"""Where a configuration says how long the training sequences were, and where it misleads."""

from __future__ import annotations

from types import SimpleNamespace as Config

import pytest
import transformers

from selfextend_rag.errors import UnknownPretrainingWindow
from selfextend_rag.planning import pretraining_window_of


def test_the_plain_case():
    config = transformers.LlamaConfig(max_position_embeddings=4096)
    assert pretraining_window_of(config) == 4096


def test_multimodal_models_nest_it_in_their_text_part():
    config = transformers.Gemma3Config(text_config={"max_position_embeddings": 32_768})
    assert pretraining_window_of(config) == 32_768


def test_llama_3_1_was_trained_to_the_end_of_its_scaling():
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = transformers.LlamaConfig(rope_scaling=scaling, max_position_embeddings=131_072)
    assert pretraining_window_of(config) == 131_072


@pytest.mark.parametrize("stated", [32_768, 131_072])
def test_yarn_multiplies_the_original_window_wherever_the_stated_one_stands(stated):
    scaling = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768
    }  # fmt: skip
    config = transformers.Qwen2Config(rope_scaling=scaling, max_position_embeddings=stated)
    assert pretraining_window_of(config) == 131_072


def test_longrope_is_counted_to_where_its_frequencies_change():
    """Beyond it, keys of earlier chunks would be rotated by other frequencies than later ones."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    config = transformers.Phi3Config(
        rope_scaling=scaling,
        max_position_embeddings=131_072,
        original_max_position_embeddings=4096,
    )
    assert pretraining_window_of(config) == 4096


def test_a_model_whose_layers_all_slide_never_saw_farther_than_they_do():
    config = transformers.MistralConfig(max_position_embeddings=32_768, sliding_window=4096)
    assert pretraining_window_of(config) == 4096
    config.sliding_window = None
    assert pretraining_window_of(config) == 32_768


def test_sliding_layers_beside_full_ones_do_not_bound_it():
    config = transformers.Gemma3TextConfig(max_position_embeddings=32_768, sliding_window=512)
    assert pretraining_window_of(config) == 32_768


def test_a_sliding_window_that_is_switched_off_does_not_bound_it():
    config = Config(max_position_embeddings=32_768, sliding_window=4096, use_sliding_window=False)
    assert pretraining_window_of(config) == 32_768


def test_rotary_parameters_by_layer_type_are_read_at_the_full_layers():
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1000}
    config = Config(
        max_position_embeddings=1000,
        rope_parameters={"full_attention": yarn, "sliding_attention": {"rope_type": "default"}},
    )
    assert pretraining_window_of(config) == 2000


def test_older_names_are_understood():
    assert pretraining_window_of(Config(n_positions=1024)) == 1024
    assert pretraining_window_of(transformers.GPT2Config(n_positions=256)) == 256


@pytest.mark.parametrize(
    "config", [Config(), Config(max_position_embeddings=None), Config(n_positions=0)]
)
def test_a_configuration_that_does_not_say_is_refused_with_the_way_out(config):
    with pytest.raises(UnknownPretrainingWindow, match="pass pretraining_window"):
        pretraining_window_of(config)
