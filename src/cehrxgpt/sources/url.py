"""Database URLs as sources: what they say, and how they may be shown.

The password of a URL reaches the driver and nothing else: `shown` is what messages, notes and ingest.json say, `scrub` takes secrets out of
the words of others. Better still it is not in the URL at all: the driver reads PGPASSWORD and ~/.pgpass.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from cehrxgpt.errors import SourceError

_SCHEME = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
_SHOWN = ("host", "port", "dbname", "user", "sslmode")  # query parameters that tell nothing secret
EXPECTED = "postgresql://user@host:5432/database or duckdb:///file.duckdb"
CONNECT_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class PostgresUrl:
    """A PostgreSQL database.

    Attributes:
        uri: for the driver alone; may hold a password.
        shown: the same without anything secret.
        name: of the database.
        schemas: from `?schema=cdm,vocabulary`; where to look for each table, in this order. Empty = search.
    """

    uri: str = field(repr=False)
    shown: str
    name: str
    schemas: tuple[str, ...]
    secrets: tuple[str, ...] = field(repr=False, default=())

    def scrub(self, text: str) -> str:
        """`text` on one line, without the secrets."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return " ".join(text.split())


def is_url(source: str | Path) -> bool:
    """Whether the source is written as a URL rather than as a path."""
    return isinstance(source, str) and _SCHEME.match(source) is not None


def has_password(source: str | Path) -> bool:
    """Whether a password is written out in a database URL."""
    parsed = parse_url(source) if isinstance(source, str) and is_url(source) else None
    return isinstance(parsed, PostgresUrl) and bool(parsed.secrets)


def parse_url(source: str) -> PostgresUrl | Path:
    """The database that a URL names: PostgreSQL, or the path of a DuckDB file.

    Raises:
        SourceError: another kind of database, or a URL that cannot be taken apart safely. Such a message does not quote the URL.
    """
    found = _SCHEME.match(source)
    kind = "" if found is None else found["scheme"].lower().split("+")[0]
    if kind == "duckdb":
        return _duckdb_path(source.split("://", 1)[1])
    if kind not in ("postgresql", "postgres"):
        raise SourceError(f"databases of the kind '{kind}' are not read; expected {EXPECTED}, or tables exported as Parquet or CSV")
    return _postgres(source)


def _duckdb_path(path: str) -> Path:
    """`///file` from the root of the file system; where nothing is there, from here, as other tools read it."""
    absolute = Path(unquote(path))
    relative = Path(unquote(path).lstrip("/"))
    return relative if not absolute.exists() and relative.exists() else absolute


def _postgres(source: str) -> PostgresUrl:
    rest = source.split("://", 1)[1]
    if "#" in rest or rest.count("@") > 1 or "@" in "".join(re.split(r"[/?]", rest, maxsplit=1)[1:]):
        raise SourceError(f"the database URL cannot be read: in a user or password write @ as %40, / as %2F, ? as %3F, # as %23; expected {EXPECTED}")
    parts = urlsplit("postgresql://" + rest)
    user_part, _, host = parts.netloc.rpartition("@")
    user, _, password = user_part.partition(":")
    if re.search(r":(?![0-9]*(,|$))", re.sub(r"\[[^\]]*\]", "", host)):
        raise SourceError(f"the database URL cannot be read: what follows the host is no port number; expected {EXPECTED}")
    query = parse_qsl(parts.query, keep_blank_values=True)
    schemas = tuple(name.strip() for key, value in query if key == "schema" for name in value.split(",") if name.strip())
    passed = [(key, value) for key, value in query if key != "schema"]
    hidden = [value for key, value in passed if "pass" in key] + [password]
    secrets = {form for value in hidden for form in (value, unquote(value)) if form}
    if not any(key == "connect_timeout" for key, _ in passed):
        passed.append(("connect_timeout", str(CONNECT_TIMEOUT_SECONDS)))
    shown_query = urlencode([(key, value) for key, value in passed if key in _SHOWN])
    shown = "postgresql://" + (f"{user}@" if user else "") + host + parts.path + (f"?{shown_query}" if shown_query else "")
    named = [value for key, value in passed if key == "dbname"]
    return PostgresUrl(
        uri=f"postgresql://{parts.netloc}{parts.path}?{urlencode(passed, quote_via=quote)}",
        shown=shown,
        name=unquote(parts.path.lstrip("/")) or (named[0] if named else unquote(user) or "database"),
        schemas=schemas,
        secrets=tuple(secrets),
    )
