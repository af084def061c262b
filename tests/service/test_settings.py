"""What a service is told when it starts."""

import pytest

from tokforget.service.settings import TOKEN_VARIABLE, Settings, read_token


GOOD = "0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 70_000}, "`port` must be a whole number from 0 to 65,535, got 70000."),
        ({"workers": 0}, "`workers` must be a whole number from 1 to 256, got 0."),
        ({"queue": True}, "`queue` must be a whole number from 1 to 100,000, got True."),
        ({"timeout": 0}, "`timeout` must lie in (0, 86,400], got 0."),
        ({"max_body_mb": float("nan")}, "`max_body_mb` must lie in"),
        ({"batch_ms": -1}, "`batch_ms` must lie in [0, 1,000] milliseconds, got -1."),
        ({"token": "short"}, "A token has at least 16 characters, got 5."),
        ({"token": GOOD + " x"}, "visible ASCII characters without spaces"),
        ({"token": GOOD, "without_token": True}, "leave out one of them"),
        ({"host": "0.0.0.0"}, "can be reached from other machines, and there is no token"),
        ({"host": "example.org"}, "can be reached from other machines"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given, said):
    with pytest.raises(ValueError) as error:
        Settings(**given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_refused_token_is_not_shown():
    with pytest.raises(ValueError) as error:
        Settings(token="hush hush hush hush")
    assert "hush" not in str(error.value)
    assert GOOD not in repr(Settings(token=GOOD))


def test_only_this_machine_unless_told():
    assert Settings().is_loopback and Settings(host="::1").is_loopback and Settings(host="127.8.8.8").is_loopback
    assert not Settings(host="0.0.0.0", token=GOOD).is_loopback
    assert Settings(host="::1", allowed_hosts=("A.example",)).hosts == {"localhost", "127.0.0.1", "[::1]", "a.example"}
    assert Settings(host="0.0.0.0", without_token=True).hosts is None
    assert Settings(host="0.0.0.0", token=GOOD, allowed_hosts=("a.example",)).hosts == {"a.example"}


def test_the_token_is_read_from_a_file_or_the_environment_and_not_left_there(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(GOOD + "\n")
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None and read_token(str(file)) == GOOD
    monkeypatch.setenv(TOKEN_VARIABLE, GOOD)
    assert read_token(None) == GOOD and read_token(None) is None  # it is gone for all that is started later
    monkeypatch.setenv(TOKEN_VARIABLE, GOOD)
    with pytest.raises(ValueError, match="both given"):
        read_token(str(file))
    monkeypatch.setenv(TOKEN_VARIABLE, " ")
    with pytest.raises(ValueError, match="is empty"):
        read_token(None)
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="ASCII"):
        read_token(str(file))
