"""The page is sent as it is, under a policy that keeps it from asking any other host."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from selfextend_rag.serve import ServerSettings, create_app
from tests.serve.web.events import events_of


async def test_the_page_and_its_files_may_load_from_here_alone(client):
    for path, kind in (("/app/", "text/html"), ("/app/static/app.js", "javascript")):
        response = await client.get(path)
        assert response.status_code == 200
        assert kind in response.headers["content-type"]
        policy = response.headers["content-security-policy"].split("; ")
        assert "default-src 'none'" in policy
        assert not [rule for rule in policy if "unsafe" in rule or "http" in rule or "*" in rule]
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_browser_that_has_a_file_asks_whether_it_changed(client, static):
    first = await client.get("/app/static/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get("/app/static/app.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    (static / "app.js").write_text("export const changed = true")
    again = await client.get("/app/static/app.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 200


@pytest.mark.parametrize(
    "path",
    ["../secret", "%2e%2e/secret", "..%2fsecret", "a/../../secret", "/etc/passwd", "link.txt"],
)
async def test_nothing_beyond_the_folder_is_sent(client, static, path):
    (static.parent / "secret").write_text("a secret")
    (static / "link.txt").symlink_to(static.parent / "secret")
    response = await client.get(f"/app/static/{path}")
    assert response.status_code == 404
    assert "secret" not in response.text


@pytest.mark.parametrize("path", ["/", "/app"])
async def test_short_addresses_lead_to_the_page(client, path):
    response = await client.get(path)
    assert response.status_code == 307
    assert response.headers["location"] == "/app/"


async def test_a_key_is_wanted_for_the_routes_and_not_for_the_page(make_client):
    client = make_client(ServerSettings(api_key="secret"))
    assert (await client.get("/app/")).status_code == 200
    assert (await client.get("/app/static/app.js")).status_code == 200
    refused = await client.get("/app/api/info")
    assert refused.status_code == 401
    given = {"authorization": "Bearer secret"}
    assert (await client.get("/app/api/info", headers=given)).status_code == 200


async def test_a_page_of_another_origin_gets_nothing(client):
    response = await client.post(
        "/app/api/samples/black-head.md", headers={"origin": "https://elsewhere.example"}
    )
    assert response.status_code == 403
    assert len(client.app.state.served.files) == 0


async def test_without_the_app_there_is_no_page(llm):
    paths = {getattr(route, "path", "") for route in create_app(llm).routes}
    assert not [path for path in paths if path.startswith("/app")]


MARKUP = "</script><img src=x onerror=alert(1)>\"'&"


async def test_nothing_that_is_answered_is_html(client, upload):
    """Markup in texts, names, questions and ids comes back as it was, as data."""
    text = f"The pass key is {MARKUP} and 48213. " * 3
    file = await upload(client, text, f"{MARKUP.replace('/', '')}.txt")
    of_file = {"files": [file]}
    asked = {**of_file, "question": MARKUP, "history": [[MARKUP, MARKUP]]}
    path = quote(MARKUP, safe="")
    requests = [
        ("GET", f"/app/api/files/{file}", None),
        ("GET", f"/app/api/files/{path}", None),
        ("GET", "/app/api/readings", None),
        ("GET", f"/app/api/positions?group_size={path}&neighbor_window=1&length=9", None),
        ("DELETE", f"/app/api/readings/{path}", None),
        ("POST", f"/app/api/samples/{path}", None),
        ("POST", "/app/api/plan", {**of_file, "question": MARKUP}),
        ("POST", "/app/api/plan", {"files": [MARKUP]}),
        ("POST", "/app/api/plan", {**of_file, MARKUP: MARKUP}),
        ("POST", "/app/api/read", of_file),
        ("POST", "/app/api/ask", asked),
        ("POST", "/app/api/ask", {**asked, "json_schema": {MARKUP: MARKUP}}),
        ("POST", "/app/api/compare", {**of_file, "question": MARKUP}),
    ]
    seen = 0
    for method, address, body in requests:
        response = await client.request(method, address, json=body)
        assert response.status_code < 500, response.text
        kind = response.headers["content-type"].partition(";")[0]
        assert kind in ("application/json", "text/event-stream"), address
        assert response.headers["x-content-type-options"] == "nosniff"
        values = response.json() if kind == "application/json" else events_of(response.text)
        seen += "onerror" in repr(values)
    assert seen > 6
