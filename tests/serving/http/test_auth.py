"""Who is let in."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from easyllm.errors import UserError
from easyllm.serving.http.auth import Keys, exposed, load_keys
from easyllm.serving.http.hosts import local_only
from easyllm.spec.inference import ServingSpec
from tests.serving.served import Served


@pytest.mark.parametrize("key", [None, "sesam", "sesame1", "Sesame", "sesame,mellon", "ÿ"])
def test_wrong_keys(narrow: Served, key: str | None) -> None:
    header = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
    with httpx.Client(base_url=narrow.url, headers=header) as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/models/small", "/nowhere"):
            assert client.get(path).status_code == 401, path
        for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
            response = client.post(path, json={})
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "invalid_api_key"
        for path in ("/health", "/ready", "/", "/app.js", "/app.css"):
            assert client.get(path).status_code == 200, path


def test_either_key_is_taken(narrow: Served) -> None:
    for header in ("Bearer sesame", "bearer mellon"):
        response = httpx.get(f"{narrow.url}/v1/models", headers={"Authorization": header})
        assert response.status_code == 200
    basic = httpx.get(f"{narrow.url}/v1/models", headers={"Authorization": "Basic sesame"})
    assert basic.status_code == 401


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EASYLLM_API_KEY", raising=False)
    assert not load_keys(ServingSpec()) and load_keys(ServingSpec()).accept(None)
    file = tmp_path / "keys"
    file.write_text("# of the team\nfirst\n\nsecond \n")
    keys = load_keys(ServingSpec(api_key_file=str(file)))
    assert keys.accept("first") and keys.accept("second")
    assert not keys.accept("# of the team") and not keys.accept("")
    monkeypatch.setenv("EASYLLM_API_KEY", "a, b")
    keys = load_keys(ServingSpec(api_key_file=str(file)))
    assert all(map(keys.accept, ("a", "b", "first")))
    file.write_text("\n")
    for wrong in (file, tmp_path / "none"):
        with pytest.raises(UserError, match=r"serving\.api_key_file=.*one"):
            load_keys(ServingSpec(api_key_file=str(wrong)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_comments_and_marks_are_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.delenv("EASYLLM_API_KEY", raising=False)
    file = tmp_path / "keys"
    text = "\ufefffirst\r\n  # ours\r\n\t#theirs\nsecond # of the laptop\n\ufeffth#ird\t#\n"
    file.write_bytes(text.removeprefix("\ufeff" * (encoding != "utf-16-be")).encode(encoding))
    keys = load_keys(ServingSpec(api_key_file=str(file)))
    assert all(map(keys.accept, ("first", "second", "th#ird")))
    for wrong in ("# ours", "#theirs", "second # of the laptop", "\ufefffirst", "# of the laptop"):
        assert not keys.accept(wrong)
    file.write_text("# nothing\n  # but this\n")
    with pytest.raises(UserError, match="holds no key"):
        load_keys(ServingSpec(api_key_file=str(file)))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o644, 0o640, 0o602, 0o700])
def test_who_else_can_read_the_key_file(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "the keys"
    file.write_text("sesame\n")
    file.chmod(mode)
    said = exposed(ServingSpec(api_key_file=str(file)))
    if mode & 0o077:
        assert said and f"(mode {mode:o}); chmod 600 '{file}'" in said and "sesame" not in said
    else:
        assert said is None
    assert exposed(ServingSpec()) is None


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """However early one matches, so that the time does not tell which."""
    compared = []
    monkeypatch.setattr(
        "hmac.compare_digest", lambda a, b: (compared.append(len(a)), len(b), a == b)[-1]
    )
    assert Keys(["a", "b", "c"]).accept("a")
    assert compared == [32, 32, 32]


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("example.org", False)],
)  # fmt: skip
def test_which_addresses_are_this_machine(host: str, local: bool) -> None:
    assert local_only(host) is local
