"""Which addresses the server accepts to listen on, and what it takes from the environment."""

import pytest
from pydantic import ValidationError

from whatfits.estimator.errors import InputError
from whatfits.service.serve import run
from whatfits.service.settings import Settings, check_host

PUBLIC = ["0.0.0.0", "::", "192.168.1.10", "example.org", "", "127.0.0.1.example.org", "localhost.example"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_is_accepted(host: str) -> None:
    assert check_host(host) == host


@pytest.mark.parametrize("host", PUBLIC)
def test_anything_else_is_refused_with_what_is_accepted(host: str) -> None:
    with pytest.raises(InputError) as error:
        check_host(host)
    assert (error.value.field, error.value.value) == ("host", host)
    assert "no API keys yet" in str(error.value)
    assert error.value.accepted.startswith("a loopback address")
    assert "WHATFITS_PUBLISHED_ON=loopback" in error.value.accepted


def test_whoever_publishes_the_port_on_loopback_alone_may_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATFITS_PUBLISHED_ON", "loopback")

    assert check_host("0.0.0.0", published_on=Settings().published_on) == "0.0.0.0"


@pytest.mark.parametrize("value", ["everywhere", "0.0.0.0", "", "LOOPBACK"])
def test_nothing_else_can_be_said(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("WHATFITS_PUBLISHED_ON", value)

    with pytest.raises(ValidationError, match="'loopback'"):
        Settings()


def test_the_server_does_not_start_on_another_address() -> None:
    with pytest.raises(InputError, match=r"0\.0\.0\.0"):
        run("0.0.0.0", 8000)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATFITS_MAX_BODY_BYTES", "2048")
    assert Settings().max_body_bytes == 2048


def test_the_database_is_a_file_of_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Settings().database_url == "sqlite:////data/whatfits/whatfits.db"


def test_the_database_can_be_chosen_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATFITS_DATABASE_URL", "postgresql://me:secret@db/whatfits")
    settings = Settings()
    assert settings.database_url == "postgresql://me:secret@db/whatfits"
    assert "secret" not in repr(settings)


def test_another_kind_of_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATFITS_DATABASE_URL", "mysql://me:secret@db/whatfits")
    with pytest.raises(InputError, match=r"database_url: .*mysql.*accepted: sqlite:///FILE") as caught:
        Settings()
    assert "secret" not in str(caught.value)
