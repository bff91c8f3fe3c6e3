"""What the page knows before the model runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfextend_rag.serve import ServerSettings
from selfextend_rag.serve.web import samples
from tests.serve.web.events import events_of

EXAMPLES = Path(__file__).parents[3] / "examples" / "documents"
KEY = "The pass key is 48213. Remember it.\n"
OTHER = "The lamp of the tower is lit at dusk. It turns once in ten seconds.\n"


async def test_info_has_the_figures_of_the_model(client, llm):
    info = (await client.get("/app/api/info")).json()
    assert info["pretraining_window"] == llm.model.config.max_position_embeddings
    assert info["extended_window"] == llm.planner.extended_window
    assert info["saves"] is False
    assert [sample["name"] for sample in info["samples"]] == list(samples.NAMES)
    assert all(sample["label"] and sample["questions"] for sample in info["samples"])


async def test_a_sample_is_kept_as_an_upload_of_it_would_be(client, upload):
    for sample in (await client.get("/app/api/info")).json()["samples"]:
        kept = (await client.post(f"/app/api/samples/{sample['name']}")).json()
        (example,) = EXAMPLES.rglob(sample["name"])
        data = example.read_bytes()
        response = await client.post("/v1/files", files={"file": (sample["name"], data)})
        assert response.json()["id"] == kept["id"], "a sample is the example of that name"
    assert len(client.app.state.served.files) == len(samples.NAMES)


ANSWERS = {
    "What is the access code of the workshop?": "48213",
    "What is the height of the dome?": "31 feet",
    "What is the height of the tower?": "45 feet",
    "What is the number of the boat?": "1833",
    "What is the fourth river?": "Euphrates",
    "What is the name of the second river?": "Gihon",
}


@pytest.mark.parametrize("sample", samples.SAMPLES, ids=lambda sample: sample.name)
async def test_the_questions_that_are_proposed_get_right_answers(client, sample):
    """Other weights could no longer answer those of one sample."""
    assert sample.questions
    file = (await client.post(f"/app/api/samples/{sample.name}")).json()["id"]
    for question in sample.questions:
        asked = {"files": [file], "question": question}
        response = await client.post("/app/api/ask", json=asked)
        name, answer = events_of(response.text)[-1]
        assert (name, answer["text"].strip(" .")) == ("answer", ANSWERS[question])
        assert ANSWERS[question] in " ".join(answer["evidence"][0]["text"].split())


@pytest.mark.parametrize("name", ["none.txt", "__init__.py", "..%2fpage.py", "%00"])
async def test_what_is_no_sample_is_not_there(client, name):
    response = await client.post(f"/app/api/samples/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["message"]


async def test_a_file_comes_with_its_text_and_places(client):
    kept = (await client.post("/app/api/samples/handbook.pdf")).json()
    file = (await client.get(f"/app/api/files/{kept['id']}")).json()
    assert {name: file[name] for name in kept} == kept
    assert len(file["text"]) == file["characters"]
    page = file["locations"][3]
    assert page["name"] == "page 4"
    assert "48213" in file["text"][page["start"] : file["locations"][4]["start"]]


async def test_markup_in_names_and_texts_stays_data(client, upload):
    text = '<script>alert(1)</script> & "quoted" </textarea>'
    file_id = await upload(client, text, "<img src=x onerror=alert(1)>.txt")
    response = await client.get(f"/app/api/files/{file_id}")
    assert response.headers["content-type"] == "application/json"
    assert response.json()["text"] == text
    assert response.json()["filename"] == "<img src=x onerror=alert(1)>.txt"


async def test_a_plan_is_that_of_the_reading_to_come(client, llm, upload):
    one, two = await upload(client, KEY * 4), await upload(client, OTHER * 9, "tower.txt")
    body = {"files": [two, one], "max_new_tokens": 20}
    plan = (await client.post("/app/api/plan", json=body)).json()
    reading = client.app.state.served.readings.get(
        [client.app.state.served.files.get(name).document for name in (two, one)],
        max_new_tokens=20,
    )
    assert plan["fits"]
    planned, made = plan["plan"], reading.plan.to_dict()
    assert planned | {"memory": None} == made | {"memory": None}  # what is free changes meanwhile
    assert plan["explanation"].startswith(f"{plan['plan']['prompt_tokens']} tokens of prompt")
    assert set(plan["tokens"]) == {one, two}
    assert 0 <= plan["plan"]["prompt_tokens"] - sum(plan["tokens"].values()) < 20  # headings
    assert plan["memory"]["needed_bytes"] < plan["memory"]["available_bytes"]


async def test_what_does_not_fit_is_refused_with_figures_and_what_would_fit(client, llm, upload):
    window = llm.planner.extended_window
    most = 2 * window // 3 // llm.count_tokens(OTHER)  # of these lines, so that one fits alone
    names = [await upload(client, f"{KEY * 3}{OTHER * most}{n}", f"{n}.txt") for n in range(3)]
    body = {"files": names, "question": "What is lit in the tower 2?"}
    plan = (await client.post("/app/api/plan", json=body)).json()
    assert not plan["fits"]
    assert plan["plan"] is None
    problem = plan["problem"]
    assert problem["excess"] == problem["needed"] - problem["available"] > 0
    assert problem["available"] == window
    assert f"window of {window}" in problem["message"]
    assert problem["remedies"]
    fitting = plan["fitting"]
    assert 0 < len(fitting) < 3
    again = await client.post("/app/api/plan", json={**body, "files": fitting})
    assert again.json()["fits"]
    left = [name for name in names if name not in fitting]
    more = await client.post("/app/api/plan", json={**body, "files": [*fitting, left[0]]})
    assert not more.json()["fits"], "those that are left out would not have fitted"


async def test_the_most_relevant_files_are_kept(client, llm, upload):
    most = 2 * llm.planner.extended_window // 3  # tokens of each
    tower = await upload(client, OTHER * (most // llm.count_tokens(OTHER)), "tower.txt")
    key = await upload(client, KEY * (most // llm.count_tokens(KEY)), "key.txt")
    for question, kept in (("Who lit the lamp of the tower?", tower), ("pass key?", key)):
        body = {"files": [tower, key], "question": question}
        plan = (await client.post("/app/api/plan", json=body)).json()
        assert plan["fitting"] == [kept]
    without = (await client.post("/app/api/plan", json={"files": [tower, key]})).json()
    assert not without["fits"]
    assert without["fitting"] is None


async def test_one_text_under_two_names_is_planned_once(client, upload):
    one, two = await upload(client, KEY), await upload(client, KEY, "copy.txt")
    alone = (await client.post("/app/api/plan", json={"files": [one]})).json()
    both = (await client.post("/app/api/plan", json={"files": [one, two]})).json()
    planned, again = both["plan"], alone["plan"]
    assert planned | {"memory": None} == again | {"memory": None}  # what is free changes meanwhile
    assert set(both["tokens"]) == {one, two}
    assert both["plan"]["prompt_tokens"] < sum(both["tokens"].values())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"files": ["file-none"]}, 404),
        ({"files": []}, 400),
        ({}, 400),
        ({"files": ["file-none"], "max_new_tokens": 0}, 400),
        ({"files": ["file-none"], "questions": "?"}, 400),
    ],
)
async def test_a_wrong_request_is_said_to_be_wrong(client, body, status):
    response = await client.post("/app/api/plan", json=body)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("group", "window", "length"), [(4, 128, 3001), (1, 7, 50), (7, 33, 90), (3, 400, 100)]
)
async def test_positions_are_those_of_the_method(client, group, window, length):
    query = f"group_size={group}&neighbor_window={window}&length={length}"
    curve = (await client.get(f"/app/api/positions?{query}")).json()
    distances, positions = curve["distances"], curve["positions"]
    assert distances[0] == 0
    assert distances[-1] == length - 1
    assert distances == sorted(set(distances))
    assert len(distances) <= 402
    for distance, position in zip(distances, positions, strict=True):
        key = length - 1 - distance
        far = (length - 1) // group + window - window // group - key // group
        assert position == (distance if distance < window else far)
    if window < length:
        assert {window - 1, window} <= set(distances)


@pytest.mark.parametrize("query", ["", "group_size=0&neighbor_window=4&length=9", "group_size=x"])
async def test_positions_of_no_settings_are_refused(client, query):
    assert (await client.get(f"/app/api/positions?{query}")).status_code == 400


async def test_files_that_find_no_space_are_refused(make_client):
    client = make_client(ServerSettings(max_files=1))
    assert (await client.post("/app/api/samples/black-head.md")).status_code == 200
    refused = await client.post("/app/api/samples/genesis.txt")
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "too_many_files"
