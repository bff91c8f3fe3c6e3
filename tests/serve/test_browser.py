"""The web app in a browser: the whole path on the bundled model, what is refused, who can use it.

Debian's Chromium is driven by Playwright; where one of them is missing, these tests are skipped.
"""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import subprocess
import sys
import time
from functools import partial

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the server's libraries are not installed")

from playwright import sync_api

from selfextend_rag.serve import ServerSettings, create_app
from tests.serve.conftest import STORY, Listening

pytestmark = pytest.mark.slow  # a minute, all in all

PATIENCE = 60_000  # milliseconds for what the model, and a busy machine, may take

# A passage behind characters that JavaScript counts as two; the question is about it.
NOTES = "\U0001f409 " * 9 + "Some notes.\n\n" + STORY
OTHER = (
    "The ferry crosses twice a day. In winter it stays in the harbour. Its captain is called Jon."
)
RAIN = "The rain fell on the fields. "  # about 8 tokens
QUESTION = "What is the height of the old mill?"

DROP = """(files) => {
  const transfer = new DataTransfer();
  for (const [name, text] of files) transfer.items.add(new File([text], name));
  const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.getElementById("drop").dispatchEvent(new DragEvent(kind, options));
  }
}"""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def app(llm):
    with Listening(create_app(llm, ServerSettings(), web=True)) as listening:
        yield listening


class Visit:
    """A page in a window of its own, and what it did that it should not."""

    def __init__(self, browser, url, *, wait=True, allowed=(), **options):
        self.url = url
        self.faults: list[str] = []
        self.allowed = allowed  # parts of what the browser may say of refused requests
        self.context = browser.new_context(**{"reduced_motion": "reduce", **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("request", self._asked)
        self.page.goto(f"{url}/app/")
        if wait:
            self.ready()

    def ready(self):
        self.page.wait_for_selector("html[data-ready]")

    def _said(self, message):
        if any(part in message.text for part in self.allowed):
            return
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _dialog(self, dialog):
        self.faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _asked(self, request):
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.faults.append(f"asked {request.url}")

    def drop(self, *files):
        """Drop files, and wait for the plan of all that are there."""
        wanted = self.page.locator("#document-list li").count() + len(files)
        self.page.evaluate(DROP, files)
        sync_api.expect(self.page.locator("#document-list li")).to_have_count(wanted)
        self.page.wait_for_selector("#document-list li .figures:has-text('token')")

    def ask(self, question):
        answers = self.page.locator(".exchange").count()
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        sync_api.expect(self.page.locator(".exchange")).to_have_count(answers + 1)
        sync_api.expect(self.page.locator("#ask")).to_be_enabled()
        return self.page.locator(".exchange").last

    def download(self, button):
        with self.page.expect_download() as waiting:
            self.page.click(button)
        with open(waiting.value.path(), encoding="utf-8-sig", newline="") as file:
            return file.read()


@pytest.fixture
def visit(browser, app):
    """Return a function that visits the app; at the end, nothing may have gone wrong."""
    visits = []
    for file in app.served.files.all():  # a page without files of its own shows the server's
        app.served.files.remove(file.id)

    def begun(**options):
        visits.append(Visit(browser, app.url, **options))
        return visits[-1]

    yield begun
    for each in visits:
        each.context.close()
        assert each.faults == []


def marked(page):
    """The marked passage, all text before it, and whether it is in sight within its view."""
    return page.evaluate("""() => {
      const view = document.getElementById("view-text");
      const mark = view.querySelector("mark.current");
      const before = document.createRange();
      before.setStart(view, 0);
      before.setEndBefore(mark);
      const [box, frame] = [mark.getBoundingClientRect(), view.getBoundingClientRect()];
      const isInSight = box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
      return [mark.textContent, before.toString(), isInSight];
    }""")


def test_files_are_read_and_an_answer_leads_to_its_passage(visit):
    here = visit()
    page = here.page
    long = NOTES + "\n" + "Nothing else is known of it. " * 20
    here.drop(("notes.txt", long), ("ferry.txt", OTHER))
    assert page.locator(".bar-picture .part").count() == 4  # two documents, question, answer
    page.click("#read")
    sync_api.expect(page.locator("#reading-state")).to_contain_text("Read: ")

    exchange = here.ask(QUESTION)
    assert "6400" in exchange.locator(".answer").inner_text()
    passage = exchange.locator(".passage").first
    assert "notes" in passage.locator(".where").inner_text()
    said = passage.locator("strong").text_content()
    assert "6400" in said

    passage.click()
    page.wait_for_selector("mark.current")
    text, before, is_in_sight = marked(page)
    assert text == said
    assert before == long[: long.index(said)]
    assert is_in_sight
    assert page.text_content("#view-text") == long
    assert page.locator("#view-strip .heat").count() == 200
    page.keyboard.press("Escape")
    assert passage.evaluate("node => node === document.activeElement")


@pytest.fixture
def folder(tmp_path):
    for name in ("part 10.txt", "part 9.txt", ".hidden.txt", ".git/config.txt", "deep/last.txt"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {name}, and nothing else.")
    return tmp_path / "folder"


def test_a_folder_is_taken_in_order_without_what_is_hidden(visit, folder):
    here = visit()
    page = here.page
    page.set_input_files("#folder-input", folder)
    names = page.locator("#document-list .name")
    sync_api.expect(names).to_have_text(["last", "part 9", "part 10"])
    said = page.inner_text("#documents-problems")
    assert "2 hidden files" in said
    assert ".hidden.txt" in said


def dropped(page, *paths):
    """Drop files and folders as a file manager does; scripts can't make a folder to drop."""
    browser = page.context.new_cdp_session(page)
    box = page.locator("#drop").bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        browser.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    sync_api.expect(page.locator("#drop")).to_have_class("drop over")
    browser.send("Input.dispatchDragEvent", {"type": "drop", **place, "data": data})
    sync_api.expect(page.locator("#drop")).to_have_class("drop")


def test_a_dropped_folder_is_taken_with_its_folders_without_what_is_hidden(visit, folder):
    (folder.parent / "alone.txt").write_text("A file that is dropped beside the folder.")
    for number in range(120):  # browsers list a folder in parts of a hundred
        name = folder / "many" / f"number {number}.txt"
        name.parent.mkdir(exist_ok=True)
        name.write_text(f"This is number {number} of many.")
    here = visit()
    page = here.page
    dropped(page, folder, folder.parent / "alone.txt")
    many = [f"number {number}" for number in range(120)]
    names = page.locator("#document-list .name")
    sync_api.expect(names).to_have_text(["last", *many, "part 9", "part 10", "alone"])
    said = page.inner_text("#documents-problems")
    assert "2 hidden files" in said
    assert ".git" in said


def test_no_more_files_are_taken_than_the_server_keeps(visit, app, folder, monkeypatch):
    """Each of the others was sent, and had a notice of its own."""
    monkeypatch.setattr(app.served.files, "most", 2)
    here = visit(allowed=("413",))
    page = here.page
    for number in range(20):
        (folder / f"more {number}.txt").write_text(f"This is number {number} of more.")
    dropped(page, folder)
    sync_api.expect(page.locator("#documents-problems")).to_contain_text("files were left out")
    assert page.locator("#document-list .name").count() == 2
    assert page.locator("#documents-problems > *").count() == 2  # what is hidden, what is too many


def test_the_command_serves_the_page_with_its_files(browser, tmp_path):
    (tmp_path / "mill.txt").write_text(STORY)
    (tmp_path / "ferry.txt").write_text(OTHER)
    command = [sys.executable, "-m", "selfextend_rag", "app", "--no-browser", "--port", "0"]
    command += [str(tmp_path / "mill.txt"), str(tmp_path / "ferry.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip().removesuffix("/app/")
            here = Visit(browser, url)
            sync_api.expect(here.page.locator("#document-list .name")).to_have_text(
                ["mill", "ferry"]
            )
            assert "6400" in here.ask(QUESTION).locator(".answer").inner_text()
            here.context.close()
            assert here.faults == []
        finally:
            server.terminate()
    assert server.returncode == 0


def test_a_reload_keeps_documents_and_conversation_and_a_reading_is_opened_again(visit, app):
    here = visit()
    page = here.page
    here.drop(("one.txt", STORY + " It rained."), ("two.txt", OTHER))
    here.ask(QUESTION)
    page.reload()
    here.ready()
    sync_api.expect(page.locator("#document-list li")).to_have_count(2)
    page.locator(".exchange .passage").first.click()
    page.wait_for_selector("mark.current")
    assert "6400" in marked(page)[0]

    for _ in range(2):
        page.click("#document-list .remove >> nth=0")
    sync_api.expect(page.locator("#document-list li")).to_have_count(0)
    page.click("#saved summary")
    saved = page.locator("#saved-list li", has_text="one").filter(has_text="two")
    saved.get_by_role("button", name="Open").click()
    sync_api.expect(page.locator("#document-list .name")).to_have_text(["one", "two"])
    exchange = here.ask(QUESTION)
    assert "6400" in exchange.locator(".answer").inner_text()
    assert "read before" in exchange.locator(".figures").inner_text()

    kept = page.locator("#saved-list li").count()
    saved.first.get_by_role("button", name="Delete").click()
    page.click("#confirm-yes")
    sync_api.expect(page.locator("#saved-list li")).to_have_count(kept - 1)


def test_a_conversation_is_exported_with_its_evidence(visit):
    here = visit()
    here.drop(("notes.txt", NOTES))
    here.ask(QUESTION)
    exported = json.loads(here.download("#export-json"))
    (exchange,) = exported["exchanges"]
    assert exchange["question"] == QUESTION
    first = exchange["evidence"][0]
    assert NOTES[first["start"] : first["end"]] == first["text"]
    markdown = here.download("#export-markdown")
    assert QUESTION in markdown
    assert f"characters {first['start']} to {first['end']}" in markdown


def test_too_large_a_document_is_refused_with_figures_and_the_rest_can_be_kept(visit, llm):
    here = visit()
    page = here.page
    here.drop(("notes.txt", NOTES))
    window = llm.planner.extended_window
    here.drop(("long.txt", RAIN * (window // 5)))
    page.wait_for_selector("#budget .problem")
    said = page.inner_text("#budget .verdict").replace(",", "")
    needed, available = (int(word) for word in said.split() if word.isdecimal())
    assert available <= window < needed
    assert page.locator("#read").is_disabled()
    page.fill("#question", QUESTION)
    page.get_by_role("button", name="Keep the most relevant that fit").click()
    sync_api.expect(page.locator("#document-list .left-out .name")).to_have_text(["long"])
    sync_api.expect(page.locator("#read")).to_be_enabled()
    assert "6400" in here.ask(QUESTION).locator(".answer").inner_text()


def test_a_newcomer_takes_a_sample_and_a_question_that_is_proposed(visit):
    here = visit()
    page = here.page
    assert "Add documents" in page.inner_text("#conversation")
    assert page.locator("#export-json").is_disabled()
    page.get_by_role("button", name="Report of a lighthouse").click()
    page.get_by_role("button", name="What is the number of the boat?").click()
    exchange = page.locator(".exchange").last
    sync_api.expect(exchange.locator(".passage").first).to_contain_text("1833")
    assert "1833" in exchange.locator(".answer").inner_text()
    sync_api.expect(page.locator("#reading-state")).to_contain_text("Questions begin at once")
    around = exchange.locator(".around").all_inner_texts()
    assert around
    whole = page.evaluate(
        "async () => (await (await fetch('/v1/files')).json()).data.map(file => file.id)"
    )
    (text,) = [page.request.get(f"{here.url}/v1/files/{file}/content").text() for file in whole]
    for said in around:  # cut between words
        assert set(said.replace("…", "").split()) <= set(text.split())
    assert page.locator("#export-json").is_enabled()


def until_idle(app):
    until = time.monotonic() + PATIENCE / 1000
    while app.served.admission.admitted and time.monotonic() < until:
        time.sleep(0.05)
    assert app.served.admission.admitted == 0


def test_a_reading_is_cancelled_and_nothing_of_it_is_kept(visit, app, llm):
    here = visit()
    page = here.page
    half = llm.planner.extended_window // 2
    here.drop(("rain.txt", RAIN * (half // 8)))
    sync_api.expect(page.locator("#read")).to_be_enabled()
    page.click("#read")
    page.wait_for_selector("#reading-progress:visible")
    page.click("#cancel-reading")
    sync_api.expect(page.locator("#reading-state")).to_contain_text("Cancelled")
    until_idle(app)
    page.click("#saved summary")
    assert page.locator("#saved-list li", has_text="rain").count() == 0


def test_a_question_is_stopped_and_another_is_asked(visit, app, llm):
    here = visit()
    page = here.page
    here.drop(("fields.txt", RAIN * (llm.planner.extended_window // 16) + "They are wet."))
    page.fill("#question", QUESTION)
    page.click("#ask")
    page.wait_for_selector(".exchange progress:visible")
    page.click("#stop")
    sync_api.expect(page.locator(".exchange > .figures")).to_have_text("Stopped before its end.")
    until_idle(app)
    page.click("#document-list .remove")
    here.drop(("notes.txt", NOTES))
    page.get_by_role("button", name="Ask again").click()
    page.press("#question", "Enter")
    sync_api.expect(page.locator(".exchange .passage").first).to_contain_text("6400")


def test_many_questions_make_a_table_that_is_downloaded(visit):
    here = visit()
    page = here.page
    here.drop(("notes.txt", NOTES))
    page.click("#several-tab")
    page.fill("#several-questions", f"{QUESTION}\n\nWhat is the name of the miller?\n")
    page.click("#several-run")
    sync_api.expect(page.locator("#several-csv")).to_be_enabled()
    rows = list(csv.DictReader(here.download("#several-csv").splitlines()))
    assert [row["question"] for row in rows] == [QUESTION, "What is the name of the miller?"]
    shown = page.locator("#several-rows td:nth-child(2)").all_inner_texts()
    assert [row["answer"].strip() for row in rows] == [text.strip() for text in shown]
    assert "6400" in rows[0]["answer"]
    assert "6400" in rows[0]["passage"]


def test_an_answer_is_json_that_the_schema_allows(visit):
    here = visit()
    page = here.page
    here.drop(("notes.txt", NOTES))
    page.click("#options summary")
    page.fill("#schema", "{")
    assert "no JSON yet" in page.inner_text("#schema-state")
    schema = {
        "type": "object",
        "properties": {"height": {"type": "integer"}},
        "required": ["height"],
        "additionalProperties": False,
    }
    page.fill("#schema", json.dumps(schema))
    answer = json.loads(here.ask(QUESTION).locator(".answer").inner_text())
    assert list(answer) == ["height"]


def test_the_key_is_asked_for_and_then_used(browser, llm):
    with Listening(create_app(llm, ServerSettings(api_key="k3y"), web=True)) as guarded:
        here = Visit(browser, guarded.url, wait=False)
        page = here.page
        for key in ("wrong", "k3y"):
            page.wait_for_selector("#key-dialog[open]")
            page.fill("#key", key)
            page.press("#key", "Enter")
        here.ready()
        here.drop(("notes.txt", NOTES))
        assert "6400" in here.ask(QUESTION).locator(".answer").inner_text()
        page.reload()
        here.ready()  # without another question for the key
        assert {fault for fault in here.faults if "401" not in fault} == set()
        here.context.close()


def test_everything_is_done_with_keys_alone(visit):
    here = visit()
    page = here.page
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    here.drop(("one.txt", STORY), ("two.txt", OTHER))
    names = page.locator("#document-list .name")
    names.first.focus()
    page.keyboard.press("Alt+ArrowDown")
    sync_api.expect(names).to_have_text(["two", "one"])
    assert page.evaluate("document.activeElement.textContent") == "one"
    assert "number 2 of 2" in page.inner_text("#announcements")
    page.focus("#document-list [type=checkbox] >> nth=0")
    page.keyboard.press("Space")
    sync_api.expect(page.locator("#document-list .left-out .name")).to_have_text(["two"])

    page.focus("#ask-tab")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "positions-tab"
    page.wait_for_selector("#positions-svg")
    page.focus("#positions-svg")
    page.keyboard.press("Home")
    assert page.inner_text("#positions-figures").startswith("0 tokens apart: position 0,")
    page.keyboard.press("End")
    farthest = int(page.input_value("#positions-length")) - 1
    assert page.inner_text("#positions-figures").startswith(f"{farthest:,} tokens apart")


@pytest.mark.parametrize(
    ("width", "colours"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]
)
def test_axe_finds_no_fault_and_nothing_is_wider_than_the_screen(visit, llm, width, colours):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-core is not installed"
    )
    here = visit(viewport={"width": width, "height": 844}, color_scheme=colours)
    page = here.page

    def check():
        found = axe.Axe().run(page).response["violations"]
        assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    check()
    here.drop(("notes.txt", NOTES), ("ferry.txt", OTHER))
    exchange = here.ask(QUESTION)
    exchange.locator(".passage").first.click()
    page.wait_for_selector("mark.current")
    for summary in ("#options summary", "#saved summary"):
        page.click(summary)
    check()
    for tab in ("several", "compare", "positions"):
        page.click(f"#{tab}-tab")
        check()
    here.drop(("long.txt", RAIN * (llm.planner.extended_window // 5)))
    page.wait_for_selector("#budget .problem")
    check()


SCRIPTS = ("window.hurt=1", "alert(1)", "document.body.remove()", "fetch('//x.invalid')", "0")
SHAPES = (
    "<script>{0}</script>",
    "</title><script>{0}</script>",
    "<img src=x onerror={0}>",
    '"><svg onload={0}>',
    "'><body onload={0}>",
    "<iframe srcdoc='<script>{0}</script>'></iframe>",
    "<a href='javascript:{0}'>x</a>",
    "<details open ontoggle={0}>",
    "<input autofocus onfocus={0}>",
    "<math><mtext></mtext><style><img src=x onerror={0}></style></math>",
    "</textarea><script>{0}</script>",
    "<!--><script>{0}</script>-->",
    "&lt;script&gt;{0}&lt;/script&gt;",
    "\u2028<script>{0}</script>",
    "]]><script>{0}</script>",
    "<video><source onerror={0}></video>",
    "<form action=javascript:{0}><button autofocus>",
    "{{{{constructor.constructor('{0}')()}}}}",
    "${{{0}}}",
    "<marquee onstart={0}>",
)
ATTACKS = [shape.format(script) for shape, script in itertools.product(SHAPES, SCRIPTS)]


def answer_with(body, route):
    route.fulfill(body=body, content_type="text/event-stream")


def test_text_that_would_be_a_script_stays_text(visit):
    """In names, texts, titles, questions, answers, passages, and errors of the server."""
    assert len(set(ATTACKS)) == 100
    here = visit()
    page = here.page
    text = "\n".join(ATTACKS)
    names = [f"{number} {attack.replace('/', '-')}.txt" for number, attack in enumerate(ATTACKS)]
    here.drop(*((name, f"{attack}\n{STORY}") for name, attack in zip(names, ATTACKS, strict=True)))
    here.drop(("all.txt", text))
    page.locator("#document-list .name").last.click()
    sync_api.expect(page.locator("#view-text")).to_have_text(text, use_inner_text=False)
    passage = {"file_id": None, "title": text, "start": 0, "end": 1, "text": text, "before": text}
    passage |= {"after": text, "score": 0.5, "location": text}
    said = {"text": text, "finish_reason": "stop", "evidence": [passage], "seconds": 1.0}
    events = f"event: text\ndata: {json.dumps({'text': text})}\n\n"
    answered = f"{events}event: answer\ndata: {json.dumps(said)}\n\n"
    failed = f"event: error\ndata: {json.dumps({'message': text, 'remedies': ATTACKS})}\n\n"
    for body in (answered, failed):
        page.unroute("**/api/ask")
        page.route("**/api/ask", partial(answer_with, body))
        here.ask(text.replace("\n", " "))
    assert page.locator(".exchange .answer").first.text_content() == text
    assert page.evaluate("[window.hurt, document.querySelectorAll('script').length]") == [None, 1]
    alive = "img, iframe, video, object, embed, body body, form form, marquee, math"
    assert page.locator(alive).count() == 0
    page.reload()
    here.ready()
    assert page.evaluate("[window.hurt, document.querySelectorAll('script').length]") == [None, 1]


def test_both_sides_of_a_comparison_are_shown_with_what_they_saw(visit):
    here = visit()
    page = here.page
    here.drop(("notes.txt", NOTES), ("ferry.txt", OTHER))
    page.click("#compare-tab")
    page.fill("#compare-question", QUESTION)
    page.click("#compare-run")
    sync_api.expect(page.locator(".side")).to_have_count(2)
    assert "6400" in page.locator(".side .answer").first.inner_text()
    retrieved = page.locator(".side").nth(1)
    assert retrieved.locator(".passage").count() >= 1
    assert "tokens read" in retrieved.locator(".memory").inner_text()
    assert "%" in page.locator(".side").first.locator(".score").first.inner_text()
    scores = retrieved.locator(".score").all_inner_texts()  # of a search, which are no shares
    assert scores
    assert all(score.startswith("BM25 ") and "%" not in score for score in scores)
    retrieved.locator(".passage").first.click()
    page.wait_for_selector("mark.current")
