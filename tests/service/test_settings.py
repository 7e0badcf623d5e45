import pytest

from whatfits.estimator.errors import InputError
from whatfits.service.serve import run
from whatfits.service.settings import Settings, check_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_a_loopback_address_is_accepted(host: str) -> None:
    assert check_loopback(host) == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_any_other_address_is_refused_with_the_reason(host: str) -> None:
    with pytest.raises(InputError, match="no API keys yet") as caught:
        check_loopback(host)
    assert caught.value.field == "host"
    assert caught.value.value == host


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
