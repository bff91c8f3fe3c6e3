"""Scans on the command line: read by a vision model, refused by one of text."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from selfextend_rag.documents import Document
from tests.documents.files import pdf_bytes
from tests.documents.scans import pictures, scanned
from tests.zoo import vision


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("vision")
    vision.model("llava").save_pretrained(where)
    vision.processor("llava").save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def minutes(tmp_path_factory):
    pages = pdf_bytes(*(f"Page {number} of the minutes." for number in range(1, 21)))
    path = tmp_path_factory.mktemp("scans") / "minutes.pdf"
    path.write_bytes(scanned(*pictures(pages, dpi=40)))
    return path


def test_a_scan_of_20_pages_is_read_by_a_vision_model_beyond_its_window(
    run, vision_folder, minutes, tmp_path
):
    asked = ("-q", "Who?", "--pretraining-window", 200, "--max-new-tokens", 4)
    code, out, err = run(
        *("ask", minutes, "--model", vision_folder, "--pages", "auto", "--json"),
        *("--overlays", tmp_path, *asked),
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["documents"][0]["metadata"]["pages_as_pictures"] == list(range(1, 21))
    assert found["plan"]["extended"]
    assert found["plan"]["prompt_tokens"] > 20 * 16
    (answer,) = found["answers"]
    assert answer["usage"]["cached_tokens"] == found["plan"]["prompt_tokens"]
    drawn = sorted(tmp_path.iterdir())
    assert len(drawn) == len(answer["evidence"])
    pages = Document.from_file(minutes, pages="auto").pictures
    for path, passage in zip(drawn, answer["evidence"], strict=True):
        page = pages[passage["picture"]]
        with Image.open(path) as image:
            assert image.size == (page.width, page.height)
        left, top, right, bottom = passage["region"]
        assert 0 <= left < right <= page.width
        assert 0 <= top < bottom <= page.height


def test_overlays_need_a_folder_and_evidence(run, vision_folder, minutes, tmp_path):
    asked = ("ask", minutes, "-q", "Who?", "--model", vision_folder, "--pages", "auto")
    code, _, err = run(*asked, "--overlays", tmp_path / "none")
    assert (code, "there is no folder" in err) == (2, True)
    code, _, err = run(*asked, "--overlays", tmp_path, "--no-evidence")
    assert (code, "--no-evidence leaves out" in err) == (2, True)


def test_a_plan_is_made_without_weights_and_is_that_of_the_reading(run, vision_folder, scan):
    given = (scan, "--model", vision_folder, "--pages", "auto", "--json", "-q", "Who?")
    plans = []
    for command in ("plan", "ask"):
        code, out, err = run(command, *given, "--max-new-tokens", 4)
        assert code == 0, err
        plans.append(json.loads(out)["plan"])
    assert plans[0]["prompt_tokens"] == plans[1]["prompt_tokens"]
    assert "lose their margins" in plans[0]["remarks"][0]["message"]


def test_a_scan_is_refused_by_a_model_of_text_with_what_can_be_done(run, model_folder, minutes):
    code, _, err = run("ask", minutes, "-q", "Who?", "--model", model_folder)
    assert (code, "read it with --ocr, or with --pages" in err) == (2, True)
    asked = ("ask", minutes, "-q", "Who?", "--model", model_folder, "--pages", "auto")
    code, _, err = run(*asked)
    assert (code, "has 20 pictures" in err, "load a vision model" in err) == (2, True, True)
    code, _, err = run(*asked, "--ocr")
    assert (code, "give one" in err) == (2, True)
