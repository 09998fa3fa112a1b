"""What files and batches refuse."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.test_errors import error_of

FORM = {"purpose": "batch"}
FILE = {"file": ("lines.jsonl", b"{}\n")}


async def upload(http: httpx.AsyncClient, purpose: str = "batch") -> str:
    response = await http.post("/v1/files", data={"purpose": purpose}, files=FILE)
    assert response.status_code == 200, response.text
    file_id: str = response.json()["id"]
    return file_id


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({}, FILE, "purpose"),
        ({"purpose": "fun"}, FILE, "purpose"),
        (FORM, {}, "file"),
        (FORM | {"file": "text"}, {}, "file"),
        (FORM | {"expires_after[anchor]": "created_at"}, FILE, "expires_after.seconds"),
        (FORM | {"expires_after[anchor]": "x", "expires_after[seconds]": "3600"}, FILE, "expires_after.anchor"),
        (FORM | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}, FILE, "expires_after.seconds"),
        (FORM | {"expires_after[anchor]": "created_at", "expires_after[seconds]": "x"}, FILE, "expires_after.seconds"),
    ],
)
async def test_bad_uploads(http: httpx.AsyncClient, data: Any, files: Any, param: str) -> None:
    assert error_of(await http.post("/v1/files", data=data, files=files), 400)["param"] == param


async def test_uploads_that_are_no_form(http: httpx.AsyncClient) -> None:
    error_of(await http.post("/v1/files", json={}), 400)
    broken = await http.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"})
    assert error_of(broken, 400)["code"] == "invalid_form"
    two = [("file", ("a", b"1")), ("file", ("b", b"2"))]
    assert error_of(await http.post("/v1/files", data=FORM, files=two), 400)["code"] == "invalid_form"


async def test_an_upload_above_the_limit(http: httpx.AsyncClient) -> None:
    big = {"file": ("big", b"x" * ((1 << 20) + 1))}
    assert error_of(await http.post("/v1/files", data=FORM, files=big), 413)["code"] == "body_too_large"
    bigger = {"file": ("big", b"x" * (1 << 21))}
    assert error_of(await http.post("/v1/files", data=FORM, files=bigger), 413)["code"] == "body_too_large"
    assert (await http.get("/v1/files")).json()["data"] == []


async def test_content_says_its_length(http: httpx.AsyncClient) -> None:
    response = await http.get(f"/v1/files/{await upload(http)}/content")
    assert (response.headers["content-length"], response.content) == ("3", b"{}\n")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files/none"),
        ("GET", "/v1/files/none/content"),
        ("DELETE", "/v1/files/none"),
        ("GET", "/v1/batches/none"),
        ("POST", "/v1/batches/none/cancel"),
    ],
)
async def test_unknown_ids(http: httpx.AsyncClient, method: str, path: str) -> None:
    error = error_of(await http.request(method, path), 404)
    assert (error["type"], error["code"]) == ("not_found_error", "not_found")


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?limit=x", "limit"),
        ("/v1/files?order=up", "order"),
        ("/v1/batches?limit=101", "limit"),
    ],
)
async def test_bad_queries(http: httpx.AsyncClient, path: str, param: str) -> None:
    assert error_of(await http.get(path), 400)["param"] == param


async def test_empty_lists(http: httpx.AsyncClient) -> None:
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert (await http.get("/v1/files")).json() == empty
    assert (await http.get("/v1/batches")).json() == empty


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": 3}, "input_file_id"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
    ],
)
async def test_bad_batches(http: httpx.AsyncClient, change: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "f", "endpoint": "/v1/completions", "completion_window": "24h"}
    assert error_of(await http.post("/v1/batches", json=body | change), 400)["param"] == param


async def test_a_batch_needs_a_file_that_is_there_and_for_batches(http: httpx.AsyncClient) -> None:
    body = {"input_file_id": "none", "endpoint": "/v1/completions", "completion_window": "24h"}
    assert error_of(await http.post("/v1/batches", json=body), 404)["code"] == "not_found"
    body["input_file_id"] = await upload(http, "user_data")
    assert error_of(await http.post("/v1/batches", json=body), 400)["param"] == "input_file_id"
    assert error_of(await http.post("/v1/batches", json=[]), 400)["type"] == "invalid_request_error"
