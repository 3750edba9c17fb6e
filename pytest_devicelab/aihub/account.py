"""Whose AI Hub account, and at which address: read from the client's own ini file, and never shown."""

from __future__ import annotations

import configparser
import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pytest_devicelab.errors import UserError

_HIDDEN = "***"
_QUALCOMM = ".qualcomm.com"
_FIX = "`qai-hub configure --api_token ...` writes it; docs/how-to/use-ai-hub.md has the steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An address and the token for it. The matrix cannot name the address: it would choose who gets the token.

    Attributes:
        token: secret; it is in no `repr`, so that `--showlocals` cannot show it.
    """

    api_url: str
    web_url: str
    token: str = field(repr=False)

    @property
    def simulated_because(self) -> str:
        """Why what comes from this address is not taken for silicon; empty for Qualcomm's own service."""
        parts = urlsplit(self.api_url)
        host = (parts.hostname or "").casefold()
        if parts.scheme == "https" and host.endswith(_QUALCOMM):
            return ""
        return f"{parts.scheme}://{host} is not Qualcomm's service"

    def hide(self, text: str) -> str:
        """Return text without the token, whoever put it there."""
        return text.replace(self.token, _HIDDEN)

    def hide_bytes(self, data: bytes) -> bytes:
        """Return a log without the token."""
        return data.replace(self.token.encode(), _HIDDEN.encode())


def account_file() -> Path:
    """Return where the client looks for its settings. Source: qai_hub.api_utils.get_config_path."""
    return Path(os.environ.get("QAIHUB_CLIENT_INI") or "~/.qai_hub/client.ini").expanduser()


def read_account(path: Path) -> Account:
    """Read the client's ini file.

    Raises:
        UserError: it is missing or incomplete, or would send the token over a network in the clear. The message
            never quotes the file.
    """
    account = _read(path)
    if account is None:
        raise UserError(
            f"{path} does not say how to reach Qualcomm AI Hub",
            why="it is missing, cannot be read, or its section [api] lacks api_token, api_url or web_url",
            fix=_FIX,
        )
    parts = urlsplit(account.api_url)
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        raise UserError(
            f"{path}: api_url is not an https address",
            why="the token would cross the network in the clear",
            fix="use https; plain http is for this machine alone",
        )
    return account


def _read(path: Path) -> Account | None:
    # Not raised from here: the parser's errors quote the line they stumble over, which may be the token's.
    parser = configparser.ConfigParser(interpolation=None)
    try:
        if not parser.read(path, encoding="utf-8"):
            return None
        api = parser["api"]
        if not api["api_token"].strip():
            return None
        return Account(
            api_url=api["api_url"].strip(), web_url=api["web_url"].strip(), token=api["api_token"].strip()
        )
    except (configparser.Error, KeyError, OSError, UnicodeError):
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
