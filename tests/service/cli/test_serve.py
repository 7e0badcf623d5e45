"""`whatfits serve` refuses what it cannot or must not do, before it starts anything."""

import socket

import pytest

from whatfits.service.cli import main


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.10", "example.org"])
def test_refuses_addresses_that_others_can_reach(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["serve", "--host", host])
    assert exit_.value.code == 2
    assert f"host: {host!r} is not accepted" in capsys.readouterr().err


def test_says_that_the_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as exit_:
            main(["serve", "--port", str(port)])
    assert exit_.value.code == 3
    assert capsys.readouterr().err == (
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port.\n"
    )
