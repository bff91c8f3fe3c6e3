"""The page is sent as it is, under a policy that keeps it from asking any other host."""

from __future__ import annotations

import pytest

from selfextend_rag.serve import ServerSettings, create_app


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
        "/app/api/samples/elements.md", headers={"origin": "https://elsewhere.example"}
    )
    assert response.status_code == 403
    assert len(client.app.state.served.files) == 0


async def test_without_the_app_there_is_no_page(llm):
    paths = {getattr(route, "path", "") for route in create_app(llm).routes}
    assert not [path for path in paths if path.startswith("/app")]
