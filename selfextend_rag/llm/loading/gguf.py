"""GGUF files, as llama.cpp and Ollama keep them: read once, checked, and kept as a model's folder.

transformers reads these files, but passes over what it does not know: scaled rotary angles, tensors
without a place. So each statement of a file about its model, each tensor and each token is compared
with the model that came out, and what was passed over is a refusal that names it.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from selfextend_rag.errors import ModelLoadError, in_short
from selfextend_rag.llm.loading.bars import bars_if_watched
from selfextend_rag.llm.loading.gguf_checks import (
    rope_of_file,
    tensors_left_out,
    tokens_that_differ,
    unread_statements,
)

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_FORM = 1  # of what is kept; another is made again
_PART_OF_MANY = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./-]+\.gguf)", re.IGNORECASE)
_BLOCK = 1 << 24
_making = threading.Lock()


def gguf_file(source: str | os.PathLike[str]) -> Path | None:
    """Return the GGUF file that a source is, or is the folder of; None for any other source.

    Raises:
        ModelLoadError: a folder holds several of them and no ``config.json``, the file is one part
            of several, or it is not there.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        if not found or (path / "config.json").exists():
            return None
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ModelLoadError(f"the folder {path} holds several models, name one: {names}")
        path = found[0]
    elif path.suffix.lower() != ".gguf":
        return None
    if _PART_OF_MANY.search(path.name):
        raise ModelLoadError(
            f"{path} is one part of several; join them by llama-gguf-split --merge, and name that"
        )
    return path if path.is_file() else _from_hub(os.fspath(source))


def _from_hub(name: str) -> Path:
    """Return the file ``owner/model/file.gguf`` of the hub, downloaded when first asked for."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = _HUB_FILE.fullmatch(name)
    if not found:
        raise ModelLoadError(f"can't load the model {name}: there is no such file")
    try:
        return Path(hf_hub_download(*found.groups()))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelLoadError(
            f"can't load the model {name}: there is no such file here, and the hub gives none "
            f"({in_short(error)})"
        ) from error


def kept_folder(file: Path, *, weights: bool) -> Path:
    """Return a folder in transformers' own form that holds the model of a GGUF file.

    It is made when first asked for, under ``HF_HOME`` (``~/.cache/huggingface``), named after the
    content of the file and the version of transformers. Quantised weights are restored in bfloat16,
    others stay in the precision that most of them have.

    Args:
        file: the GGUF file.
        weights: whether the folder has to hold them, too; configuration and tokenizer are quicker.

    Raises:
        ModelLoadError: the gguf package is missing, the file is damaged or of an architecture that
            transformers does not read, something in it would be passed over, or it does not fit on
            the disk.
    """
    home = Path(constants.HF_HOME) / "selfextend-rag" / "gguf"
    kept = home / f"{_digest(file, home)}-{transformers.__version__}-{_FORM}"
    whole, described = kept / "model", kept / "description"
    with _making:  # other processes may make it too: the first one's is taken
        if whole.is_dir():
            return whole
        if weights:
            _make(file, whole)
            shutil.rmtree(described, ignore_errors=True)
            return whole
        if not described.is_dir():
            _make(file, described)
        return described


def _make(file: Path, folder: Path) -> None:
    """Write the folder; it is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _as_load_errors(file), bars_if_watched():
            _write(file, making, weights=folder.name == "model")
        with suppress(OSError):  # another process was faster
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    if not folder.is_dir():
        raise ModelLoadError(f"can't keep the model of {file} in {folder}")


@contextmanager
def _as_load_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelLoadError(
            f"reading {file} needs gguf and accelerate; install selfextend-rag[gguf]"
        ) from error
    # a damaged file ends in whatever numpy, struct or transformers say of it
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise ModelLoadError(f"can't load the model {file}: {in_short(error)}") from error


def _write(file: Path, folder: Path, *, weights: bool) -> None:
    from gguf import GGUFReader

    log.info("converting %s once, kept in %s", file, folder.parent)
    reader = GGUFReader(file)
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        "local_files_only": True,
    }
    config: PreTrainedConfig = AutoConfig.from_pretrained(**where)
    rope_of_file(reader, config)
    config.dtype = dtype = _dtype_of(reader)
    _refuse(file, unread_statements(reader, config))
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**where)
    _refuse(file, tokens_that_differ(reader, tokenizer))
    if weights:
        _check_space(file, folder, reader, dtype)
        model = _restored(where, config, dtype)
        _refuse(file, tensors_left_out(reader, model))
        model.generation_config = _generation(reader)
        model.save_pretrained(folder)
    else:
        _generation(reader).save_pretrained(folder)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _restored(
    where: dict[str, Any], config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Return the file's weights in a model that is like any other of its kind."""
    from transformers import AutoModelForCausalLM  # plans do without what builds models

    with suppress(ImportError):  # later versions leave weights in their blocks where they can
        from transformers import GgufConfig

        where = {**where, "quantization_config": GgufConfig(dequantize=True)}
    load: Any = AutoModelForCausalLM.from_pretrained
    read, info = load(config=copy.deepcopy(config), dtype=dtype, output_loading_info=True, **where)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"the weights {missing[0]} are not in it")
    model: PreTrainedModel
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model


def _refuse(file: Path, problems: list[str]) -> None:
    if problems:
        raise ModelLoadError(
            f"can't load the model {file}: {problems[0]}"
            f"{f', and {len(problems) - 1} more such things' if problems[1:] else ''}; take the "
            "model in the form of transformers"
        )


def _dtype_of(reader: GGUFReader) -> torch.dtype:
    """Return float32 or float16 where most weights have it, and bfloat16 for all others."""
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        name = tensor.tensor_type.name
        sizes[name] = sizes.get(name, 0) + int(tensor.n_elements)
    most = max(sizes, key=lambda name: sizes[name])
    return {"F32": torch.float32, "F16": torch.float16}.get(most, torch.bfloat16)


def _check_space(file: Path, folder: Path, reader: GGUFReader, dtype: torch.dtype) -> None:
    needed = sum(int(tensor.n_elements) for tensor in reader.tensors) * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelLoadError(
            f"can't keep the weights of {file} restored: they take {needed / 2**30:.1f} GiB, and "
            f"{folder.parent} has {free / 2**30:.1f} GiB free; set HF_HOME to a larger disk"
        )


def _generation(reader: GGUFReader) -> GenerationConfig:
    """Return what ends an answer: the end of a text, and of a message where that is another."""
    ids = {name: _token_id(reader, name) for name in ("bos", "eos", "eot", "eom", "padding")}
    ends = sorted({end for name in ("eos", "eot", "eom") if (end := ids[name]) is not None})
    found: GenerationConfig = GenerationConfig(
        bos_token_id=ids["bos"], eos_token_id=ends or None, pad_token_id=ids["padding"]
    )
    return found


def _token_id(reader: GGUFReader, name: str) -> int | None:
    field = reader.fields.get(f"tokenizer.ggml.{name}_token_id")
    return None if field is None else int(field.contents())


def _digest(file: Path, home: Path) -> str:
    """Return the beginning of a file's SHA-256; it is computed again when the file was changed."""
    about = file.stat()
    key = f"{file.resolve()}|{about.st_size}|{about.st_mtime_ns}|{about.st_ino}"
    known = home / "digests" / hashlib.sha256(key.encode()).hexdigest()[:32]
    with suppress(OSError, ValueError):
        text = known.read_text("ascii")
        if re.fullmatch("[0-9a-f]{32}", text):
            return text
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise ModelLoadError(f"can't read {file}: {error.strerror}") from error
    known.parent.mkdir(parents=True, exist_ok=True)
    written = known.with_suffix(f".{os.getpid()}")
    written.write_text(digest.hexdigest()[:32], "ascii")
    written.replace(known)
    return digest.hexdigest()[:32]


def in_transformers_form(
    source: str | os.PathLike[str], options: Mapping[str, Any], *, weights: bool
) -> tuple[str | os.PathLike[str], dict[str, Any]]:
    """Return a source and options that transformers loads: of a GGUF file, those of its folder."""
    options = dict(options)
    if name := options.pop("gguf_file", None):
        source = os.path.join(source, name)
    file = gguf_file(source)
    if file is None:
        return source, options
    return kept_folder(file, weights=weights), options
