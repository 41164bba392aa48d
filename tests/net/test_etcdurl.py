"""Config stores as text: what they mean, and that no message has a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from trikv.net.etcdurl import EtcdSettings, parse_config_store


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("etcd://h:2379", EtcdSettings(("h:2379",))),
        ("etcd://h:2379/", EtcdSettings(("h:2379",))),
        ("etcds://h:1", EtcdSettings(("h:1",), tls=True)),
        ("etcd://a:1,b.c:2,[::1]:3/p", EtcdSettings(("a:1", "b.c:2", "[::1]:3"), "p")),
        ("etcd://h:1/a/b.c_d~e-f", EtcdSettings(("h:1",), "a/b.c_d~e-f")),
        ("etcd://me:pw@h:1", EtcdSettings(("h:1",), user="me", password="pw")),
        ("etcd://m%40e:p%3Aw@h:1/x", EtcdSettings(("h:1",), "x", user="m@e", password="p:w")),
        ("etcd://me:p@w/:@h:1/x", EtcdSettings(("h:1",), "x", user="me", password="p@w/:")),
        ("etcd://me@h:1", EtcdSettings(("h:1",), user="me", password="given")),
        ("etcd://me:@h:1", EtcdSettings(("h:1",), user="me", password="")),
    ],
)
def test_what_a_text_means(text: str, meant: EtcdSettings) -> None:
    assert parse_config_store(text, password="given") == meant


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write etcd://"),
        ("http://h:1", "write etcd://"),
        ("ETCD://h:1", "write etcd://"),
        ("etcd://", "endpoint 1 of the config store is not HOST:PORT"),
        ("etcd://h", "endpoint 1"),
        ("etcd://h:1,", "endpoint 2"),
        ("etcd://h:0", "endpoint 1"),
        ("etcd://h:65536", "endpoint 1"),
        ("etcd://h h:1", "endpoint 1"),
        ("etcd://é:1", "endpoint 1"),
        ("etcd://h:1,h:1", "twice"),
        ("etcd://" + ",".join(f"h:{port}" for port in range(1, 18)), "at most 16"),
        ("etcd://h:1//x", "prefix"),
        ("etcd://h:1/x/", "prefix"),
        ("etcd://h:1/x?y", "prefix"),
        ("etcd://h:1/\x1b[31m", "prefix"),
        ("etcd://h:1/" + "x" * 201, "prefix"),
        ("etcd://@h:1", "no user before the @"),
        ("etcd://:pw@h:1", "no user before the @"),
        ("etcd://me@h:1", "user 'me' has no password; set TRIKV_CONFIG_STORE_PASSWORD"),
    ],
)
def test_a_text_that_means_nothing(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        parse_config_store(text)
    assert str(raised.value).isprintable()


def test_no_message_has_the_password() -> None:
    settings = parse_config_store("etcd://me:secret@h:1")
    assert "secret" not in f"{settings} {settings!r}"
    for text in ("etcd://me:secret@", "etcd://me:secret", "etcd://me:secret@h", "etcd://me:secret@h:1/ "):
        with pytest.raises(ValueError, match=r"write|prefix") as raised:
            parse_config_store(text)
        assert "secret" not in str(raised.value)


def test_certificates_are_for_tls_and_come_with_their_keys() -> None:
    file = Path("x.pem")
    assert parse_config_store("etcds://h:1", ca=file, certificate=file, key=file).ca == file
    with pytest.raises(ValueError, match="write etcds://"):
        parse_config_store("etcd://h:1", ca=file)
    for certificate, key in ((file, None), (None, file)):
        with pytest.raises(ValueError, match="give both or neither"):
            parse_config_store("etcds://h:1", certificate=certificate, key=key)
