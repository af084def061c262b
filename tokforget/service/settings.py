"""The checked settings of a service."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from tokforget.rates import check_number


TOKEN_VARIABLE = "TOKFORGET_TOKEN"
_SHORTEST_TOKEN = 16
_MAKE_ONE = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
# Memory of a waiting request, as a multiple of its bytes: the body, and its texts as Python objects.
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    Settings of a service.

    Args:
        model (`str`, *optional*), backend (`str`, *optional*), device (`str`, *optional*), base_model (`str`, *optional*): As in
            `Compressor.from_pretrained`. A base model enables `/v1/restore`.
        vocabularies (`tuple[str, ...]`): Tokenizers that requests may name as `count_tokens`. Other names are refused,
            because a client must not choose files of this machine or downloads.
        host (`str`), port (`int`): Address to listen on; port 0 takes any free one.
        token (`str`, *optional*): Token that requests to `/v1/...` and `/metrics` must send.
        without_token (`bool`): Allow a service without a token to listen on addresses other than loopback.
        allowed_hosts (`tuple[str, ...]`): Names that the `Host` of a request may have; on a loopback address only its
            own names.
        workers (`int`): Number of processes that compress.
        queue (`int`): Most waiting requests; the next is answered with 503.
        max_body_mb (`float`): Most MiB of a request's body.
        timeout (`float`): Most seconds from a request's last byte to its answer.
        read_timeout (`float`): Most seconds in which a client sends its headers, sends its body, and reads an answer.
        stop_timeout (`float`): Seconds for running requests after a stop signal.
        batch_ms (`float`): Milliseconds that a request waits for others with the same settings.

    Raises:
        `ValueError`, `TypeError`: If a value is not allowed.
    """

    model: str | None = None
    backend: str | None = None
    device: str | None = None
    base_model: str | None = None
    vocabularies: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    without_token: bool = False
    allowed_hosts: tuple[str, ...] = ()
    workers: int = 1
    queue: int = 64
    max_body_mb: float = 2.0
    timeout: float = 60.0
    read_timeout: float = 10.0
    stop_timeout: float = 30.0
    batch_ms: float = 2.0

    def __post_init__(self):
        for name, least, most in (("port", 0, 65_535), ("workers", 1, 256), ("queue", 1, 100_000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"`{name}` must be a whole number from {least:,} to {most:,}, got {value!r}.")
        for name, most in (
            ("max_body_mb", 1024),
            ("timeout", 86_400),
            ("read_timeout", 3_600),
            ("stop_timeout", 3_600),
        ):
            if not 0 < check_number(getattr(self, name), name) <= most:
                raise ValueError(f"`{name}` must lie in (0, {most:,}], got {getattr(self, name)}.")
        if not 0 <= check_number(self.batch_ms, "batch_ms") <= 1000:
            raise ValueError(f"`batch_ms` must lie in [0, 1,000] milliseconds, got {self.batch_ms}.")
        if self.token is not None:
            _check_token(self.token)
        if self.token is not None and self.without_token:
            raise ValueError("`without_token` and a token are both given: leave out one of them.")
        if not self.is_loopback and self.token is None and not self.without_token:
            raise ValueError(
                f"`host` {self.host} can be reached from other machines, and there is no token: write one into a file ({_MAKE_ONE}) "
                f"and pass `token_file`, or set {TOKEN_VARIABLE}; or pass `without_token` to let everybody in."
            )

    @property
    def max_body(self) -> int:
        """Most bytes of a request's body."""
        return int(self.max_body_mb * _MIB)

    @property
    def max_held(self) -> int:
        """Most bytes of bodies in memory: those of a full queue of ordinary requests, or of a few of the largest."""
        return max(64 * _MIB, 4 * self.max_body)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> frozenset[str] | None:
        """
        Host names that requests may use; `None` for any. This prevents DNS rebinding, where a foreign page's host name
        resolves to this machine: its requests carry the foreign name.
        """
        given = {name.lower() for name in self.allowed_hosts}
        if self.is_loopback:
            return frozenset(given | {"localhost", "127.0.0.1", "[::1]", url_host(self.host)})
        return frozenset(given) or None


def url_host(host: str) -> str:
    """A host in the form of a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def read_token(file: str | None) -> str | None:
    """
    The token from a file or from the environment, because lists of processes would show an argument. It is removed
    from the environment, so that child processes do not inherit it.

    Raises:
        `ValueError`: If both are given, or the file holds no token.
        `OSError`: If the file cannot be read.
    """
    told = os.environ.pop(TOKEN_VARIABLE, None)
    if file is None:
        if told is not None and not told.strip():
            raise ValueError(f"{TOKEN_VARIABLE} is empty. Set it to a token ({_MAKE_ONE}), or unset it.")
        return None if told is None else told.strip()
    if told is not None:
        raise ValueError(f"`token_file` and {TOKEN_VARIABLE} are both given: leave out one of them.")
    try:
        return Path(file).read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        raise ValueError(
            f"`token_file` {file} holds other characters than those of ASCII. {_MAKE_ONE} makes a token."
        ) from None


def _check_token(token: str) -> None:
    # The message does not show the token, because it may be most of a secret.
    if len(token) < _SHORTEST_TOKEN:
        raise ValueError(
            f"A token has at least {_SHORTEST_TOKEN} characters, got {len(token)}. {_MAKE_ONE} makes one."
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"A token is one line of visible ASCII characters without spaces. {_MAKE_ONE} makes one.")
