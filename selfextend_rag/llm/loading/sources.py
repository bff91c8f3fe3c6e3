"""What is found under a hub id, a folder or a GGUF file: configuration, tokenizer, processor.

What can't be found or read is one kind of error. No module that builds models is imported here:
a plan does without.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from selfextend_rag.errors import ModelLoadError, UnsupportedModelError, in_short
from selfextend_rag.llm.loading.gguf import in_transformers_form
from selfextend_rag.llm.loading.hub import hub_answers
from selfextend_rag.text.prompts import PromptForm

if TYPE_CHECKING:
    from transformers import ProcessorMixin

log = logging.getLogger(__name__)

SHARED_OPTIONS = frozenset(
    ("cache_dir", "code_revision", "force_download", "local_files_only", "revision", "subfolder")
) | {"token", "trust_remote_code"}
"""Options of ``from_pretrained`` that concern all files of a model."""

# the last by torch, asked for a device that it was not built for
_FILE_ERRORS = (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError)
_LOADING_ERRORS = (*_FILE_ERRORS, AssertionError)
_TOKENIZER_FILE = re.compile(r"token|vocab|merges|spiece|tekken|.*\.(model|tiktoken)$")


def load_config(
    source: str | os.PathLike[str], *, full_attention: bool = False, **options: Any
) -> PreTrainedConfig:
    """Return the configuration of a model; of the options, those that concern all files are used.

    Raises:
        ModelLoadError: it can't be found or read.
        UnsupportedModelError: its windows can't be switched off.
    """
    source, options = in_transformers_form(source, options, weights=False)
    config: PreTrainedConfig = loaded(
        source, "configuration", AutoConfig.from_pretrained, shared_options(options)
    )
    if full_attention:
        from selfextend_rag.model import with_full_attention

        return with_full_attention(config)
    return config


def load_tokenizer(source: str | os.PathLike[str], **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model; options and errors as of `load_config`."""
    source, options = in_transformers_form(source, options, weights=False)
    found = loaded(source, "tokenizer", AutoTokenizer.from_pretrained, shared_options(options))
    tokenizer: PreTrainedTokenizerBase = found
    return tokenizer


def load_processor(source: str | os.PathLike[str], **options: Any) -> ProcessorMixin | None:
    """Return the processor of a model that takes pictures; None for a model of text.

    Options are as of `load_config`.

    Raises:
        ModelLoadError: it can't be found or read, or libraries that it needs are missing.
    """
    if str(source).endswith(".gguf") or not _takes_pictures(source, options):
        return None
    from transformers import AutoProcessor, ProcessorMixin  # not for models of text alone

    try:
        found: ProcessorMixin = loaded(
            source, "processor", AutoProcessor.from_pretrained, shared_options(options)
        )
    except ModelLoadError:
        if takes_pictures_alone(source, options):
            raise
        return None  # of text alone, as many a copy of such a model is
    return found if isinstance(found, ProcessorMixin) else None


def usable_processor(
    source: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    form: PromptForm = "auto",
    **options: Any,
) -> ProcessorMixin | None:
    """Return a model's processor; None, and a warning, where it can't be used as prompts need it.

    Options and errors are as of `load_processor`.
    """
    processor = load_processor(source, **options)
    if processor is None:
        return None
    from selfextend_rag.text.picture_prompts import PicturePrompts
    from selfextend_rag.text.pictures import tokenizer_of

    try:
        PicturePrompts(tokenizer_of(processor, tokenizer), processor=processor, form=form)
    except UnsupportedModelError as error:
        log.warning("%s reads text alone: %s", os.fspath(source), error)
        return None
    return processor


def stated_max_new_tokens(source: str | os.PathLike[str], **options: Any) -> int | None:
    """Return the length of answers that a model's generation configuration names, if it does."""
    source, options = in_transformers_form(source, options, weights=False)
    name, options = os.fspath(source), shared_options(options)
    try:
        config = GenerationConfig.from_pretrained(
            name, **{**options, **_where_to_look(name, options)}
        )
    except OSError:  # many models have none
        return None
    stated: int | None = config.max_new_tokens
    return stated


def _takes_pictures(source: str | os.PathLike[str], options: Mapping[str, Any]) -> bool:
    return _model_type(source, options) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def takes_pictures_alone(source: str | os.PathLike[str], options: Mapping[str, Any]) -> bool:
    """Return whether a model's family has no class for text alone."""
    kind = _model_type(source, options)
    alone = kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return alone and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _model_type(source: str | os.PathLike[str], options: Mapping[str, Any]) -> str:
    """Return what a configuration names its family; empty where it can't be read."""
    if isinstance(given := options.get("config"), PreTrainedConfig):
        return str(given.model_type)
    try:
        config = loaded(
            source, "configuration", AutoConfig.from_pretrained, shared_options(options)
        )
    except ModelLoadError:  # raised again where the model is loaded
        return ""
    return str(config.model_type)


def shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in SHARED_OPTIONS}


def loaded(
    source: str | os.PathLike[str],
    what: str,
    load: Callable[..., Any],
    options: Mapping[str, object],
) -> Any:
    name = os.fspath(source)
    if problem := _problem_with(name):
        raise ModelLoadError(f"can't load the {what} {name}: {problem}")
    where = _where_to_look(name, options)
    try:
        return load(name, **{**options, **where})
    except _LOADING_ERRORS as error:
        reason = _missing_in(name, what) or in_short(error)
        if where:
            host = urlsplit(constants.ENDPOINT).hostname
            reason = (
                f"there is no folder of that name, {host} can't be reached, and what was "
                "downloaded before does not hold it"
            )
        raise ModelLoadError(f"can't load the {what} {name}: {reason}") from error


def _problem_with(name: str) -> str:
    """Return what can be seen to be wrong with a name; empty if nothing."""
    if not name.strip():
        return "the name is empty; give a hub id or a folder"
    if os.path.isfile(name):
        return "it is a file; name the folder that holds the model, or a GGUF file"
    # hub ids are ``name`` or ``owner/name``
    is_path = os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
    return "there is no such folder" if is_path and not os.path.isdir(name) else ""


def _missing_in(folder: str, what: str) -> str:
    """Return which file a folder lacks that can't be loaded; empty if that is not why."""
    if not os.path.isdir(folder):
        return ""
    held = os.listdir(folder)
    if what == "tokenizer" and not any(map(_TOKENIZER_FILE.match, held)):
        return "there is no tokenizer in this folder; save it there by tokenizer.save_pretrained"
    if what != "tokenizer" and "config.json" not in held:
        return "there is no config.json in this folder; save it there by model.save_pretrained"
    return ""


def _where_to_look(name: str, options: Mapping[str, object]) -> dict[str, bool]:
    """Return what keeps libraries from asking a hub that does not answer, which takes minutes."""
    if os.path.isdir(name) or options.get("local_files_only") or hub_answers(name):
        return {}
    return {"local_files_only": True}
