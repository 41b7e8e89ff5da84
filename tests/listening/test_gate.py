"""Tokens and passwords: what opens, what does not, and that neither shows."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegauge.config import Auth, ConfigError
from tidegauge.listening.gate import Gate

TOKEN, OTHER = "s3cret-token-1", "s3cret-token-2"


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture
def gate(tmp_path):
    (tmp_path / "token").write_text(f"# of this month\n{TOKEN}\n\n{OTHER}\n")
    (tmp_path / "users").write_text("prometheus:pass:with:colons\n")
    auth = Auth(bearer_token_file=str(tmp_path / "token"), basic_auth_file=str(tmp_path / "users"))
    return Gate(auth, "receivers.http.auth")


def test_each_secret_opens(gate):
    assert gate.opens(f"Bearer {TOKEN}")
    assert gate.opens(f"bearer  {OTHER} ")
    assert gate.opens(f"Bearer {TOKEN}".encode())
    assert gate.opens(basic("prometheus:pass:with:colons"))
    assert gate.challenge == 'Bearer realm="tidegauge", Basic realm="tidegauge"'


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "Bearer", "Bearer ", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}"),
        *(f"Digest {TOKEN}", basic("prometheus:"), basic("prometheus:pass"), basic(TOKEN), "Basic ä"),
        *("Basic =", "Bearer prometheus:pass:with:colons", "Bearer # of this month", b"\xff\xfe"),
        *("Bearer \udcff", "Bearer \ud800", "Basic \udcff", "\udcff"),
    ],
)
def test_nothing_else_opens(gate, header):
    assert not gate.opens(header)


@given(st.one_of(st.text(), st.binary()))
def test_whatever_is_presented_is_judged(header):
    gate = Gate.__new__(Gate)
    gate.current = (("Bearer", b"\0" * 32),)
    assert gate.opens(header) is False


def test_without_files_it_is_open():
    gate = Gate(Auth(), "receivers.http.auth")
    assert not gate.guarded
    assert gate.opens(None)


def test_a_changed_file_counts_from_when_it_is_taken(gate, tmp_path):
    (tmp_path / "token").write_text("another-one\n")
    assert gate.opens(f"Bearer {TOKEN}")
    gate.take(gate.read())
    assert not gate.opens(f"Bearer {TOKEN}")
    assert gate.opens("Bearer another-one")


@pytest.mark.parametrize("text", ["", "\n\n", "short", "# only a comment\n"])
def test_a_file_without_a_secret_is_an_error(tmp_path, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(
        ConfigError, match=r"^receivers\.http\.auth\.bearer_token_file: .*token has no secret"
    ):
        Gate(Auth(bearer_token_file=str(tmp_path / "token")), "receivers.http.auth")


@pytest.mark.parametrize("text", ["prometheus", ":password-only", "user-only:"])
def test_a_line_that_is_no_user_and_password_is_an_error_that_does_not_show_it(tmp_path, text):
    (tmp_path / "users").write_text(text)
    with pytest.raises(ConfigError, match="a line is not USER:PASSWORD") as caught:
        Gate(Auth(basic_auth_file=str(tmp_path / "users")), "receivers.http.auth")
    assert text not in str(caught.value)


def test_it_does_not_show_its_secrets(gate):
    assert TOKEN not in repr(gate) + repr(vars(gate)) + repr(gate.current)
