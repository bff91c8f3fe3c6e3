"""A folder with a tiny model, and documents to read with it."""

from __future__ import annotations

import pytest
import torch

from selfextend_rag.cli import main
from tests.documents.files import pdf_bytes
from tests.tiny import byte_tokenizer, tiny_llama


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(window=128, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def short(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("The sky is blue.")
    return str(path)


@pytest.fixture
def long(tmp_path):
    path = tmp_path / "long.md"
    path.write_text("".join(f"Fact {i} is {i * i % 97}. " for i in range(14)))
    return str(path)


@pytest.fixture
def scan(tmp_path):
    """A PDF of three pages, the second of which is a picture."""
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf_bytes("The sky is blue.", "", "The sea is green."))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A folder with two texts, one in a folder of its own, and a picture."""
    root = tmp_path / "folder"
    (root / "minutes").mkdir(parents=True)
    (root / "a.txt").write_text("The sky is blue.")
    (root / "minutes" / "b.md").write_text("# Minutes\n\nThe sea is green.")
    (root / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n...")
    return root


@pytest.fixture
def run(capsys):
    """Run the command line; return its exit code, standard output and standard error."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call
