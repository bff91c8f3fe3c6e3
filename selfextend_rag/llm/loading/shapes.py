"""What the memory of models follows from, kept from run to run in the user's cache folder.

Measuring it takes the modules that build models and some seconds, so it is done once. An entry
belongs to all that it depends on: the configuration, the sizes in the files, the options, and the
code that measures, this package's to the last byte. Models whose code is not that of transformers
have none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from selfextend_rag.errors import ReadingFileError
from selfextend_rag.planning import ModelMemory
from selfextend_rag.planning.encoding import VisionShape
from selfextend_rag.planning.memory import DeviceShare
from selfextend_rag.planning.pretraining import user_folder
from selfextend_rag.planning.workspace import LayerShape, States, WorkShape

_PACKAGE = Path(__file__).parents[2]
log = logging.getLogger(__name__)


def path_of(config: PreTrainedConfig, options: Sequence[object]) -> Path | None:
    """Return where an entry is, whether or not there is one; None where none is kept.

    Args:
        config: the model's configuration.
        options: what else its memory follows from, as JSON values.
    """
    kind = type(config)
    if not kind.__module__.startswith("transformers.") or getattr(config, "auto_map", None):
        return None
    versions = [_own_code(), torch.__version__, transformers.__version__]
    about = [f"{kind.__module__}.{kind.__qualname__}", str(config._attn_implementation)]
    key = json.dumps([versions, about, config.to_dict(), options], sort_keys=True, default=str)
    return user_folder("shapes") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def recall(path: Path) -> ModelMemory | None:
    """Return what `remember` was given; None if nothing that can be read is kept."""
    try:
        entry = json.loads(path.read_text("utf-8"))
        return ModelMemory(
            tuple(map(_layer, entry["layers"])),
            entry["itemsize"],
            WorkShape(**entry["work"]),
            tuple(DeviceShare(**{**x, "layers": tuple(x["layers"])}) for x in entry["shares"]),
            entry["kv_bits"],
            None if entry["vision"] is None else VisionShape(**entry["vision"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _layer(values: dict[str, Any]) -> LayerShape:
    states, rounded = values["states"], values["rounded_bytes"]
    return LayerShape(
        **{
            **values,
            "states": None if states is None else States(*states),
            "rounded_bytes": {int(bits): size for bits, size in rounded.items()},
        }
    )


def remember(path: Path, memory: ModelMemory) -> None:
    """Keep what was measured, where it can be kept."""
    from selfextend_rag.cache.files import make_folder, replacing

    try:
        make_folder(path.parent)
        with replacing(path) as file:
            file.write(json.dumps(asdict(memory)).encode())
    except (OSError, ReadingFileError) as error:
        log.debug("the shapes of a model are not kept: %s", error)


@lru_cache(maxsize=1)
def _own_code() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
