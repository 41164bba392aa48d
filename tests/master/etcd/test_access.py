"""Who may use etcd: users, certificates, and what an operator reads where something is wrong; against real members."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trikv.master.configstore import ConfigStoreError
from trikv.master.etcd import EtcdConfigStore
from trikv.net.etcdurl import parse_config_store
from trikv.testing.processes.etcd import EtcdCertificates, EtcdCluster, EtcdMember, etcd_missing

if (missing := etcd_missing()) is not None:
    pytest.skip(missing, allow_module_level=True)

DOCUMENT = {"term": 1}


async def use(url: str, **how: object) -> None:
    store = await EtcdConfigStore.open(parse_config_store(url, **how))  # type: ignore[arg-type]
    try:
        _, revision = await store.read()
        await store.compare_and_set(DOCUMENT, revision)
    finally:
        await store.close()


async def refusal(url: str, **how: object) -> str:
    with pytest.raises(ConfigStoreError) as raised:
        await use(url, **how)
    assert str(raised.value).isprintable()
    return str(raised.value)


# --- users ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMember]:
    """An etcd whose user `me` may use the keys below `trikv/`."""

    def spell(key: str) -> str:
        return base64.b64encode(key.encode()).decode()

    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        [member] = cluster.members
        keys = {"permType": "READWRITE", "key": spell("trikv/"), "range_end": spell("trikv0")}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("user/add", {"name": "root", "password": "r"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/add", {"name": "me", "password": "s@c:ret/"}),
            ("role/add", {"name": "trikv"}),
            ("role/grant", {"name": "trikv", "perm": keys}),
            ("user/grant", {"user": "me", "role": "trikv"}),
            ("enable", {}),
        ]
        for path, body in calls:
            member.call(f"/v3/auth/{path}", body)
        yield member


async def test_a_user_with_a_password(guarded: EtcdMember) -> None:
    await use(f"etcd://me:s%40c%3Aret%2F@{guarded.address}")
    await use(f"etcd://me@{guarded.address}", password="s@c:ret/")


async def test_a_member_that_started_anew_has_forgotten_the_token(guarded: EtcdMember) -> None:
    store = await EtcdConfigStore.open(parse_config_store(f"etcd://me@{guarded.address}", password="s@c:ret/"))
    guarded.kill()
    guarded.start()
    while not guarded.healthy:
        pass
    await store.read()
    await store.close()


async def test_what_is_wrong_about_a_user_is_said_without_the_password(guarded: EtcdMember) -> None:
    assert "etcd wants a user: write etcd://USER:PASSWORD@" in await refusal(f"etcd://{guarded.address}")
    said = await refusal(f"etcd://me:guess@{guarded.address}")
    assert said.endswith("invalid user ID or password; check the user and the password")
    assert "guess" not in said
    said = await refusal(f"etcd://me@{guarded.address}/other", password="s@c:ret/")
    assert "permission denied; grant the user's role reading and writing of every key that begins with the pre" in said
    assert "s@c" not in said


async def test_a_user_where_etcd_has_none(etcd: EtcdMember) -> None:
    assert "authentication is not enabled; leave USER:PASSWORD@ out" in await refusal(f"etcd://me:x@{etcd.address}")


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMember]:
    """One that anybody may use, without TLS."""
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster.members[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and signed by it server.pem and client.pem, with their keys; stranger.pem is signed by itself."""
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    make = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*make, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*make, "-subj", "/CN=stranger", "-keyout", "stranger.key", "-out", "stranger.pem")
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        uses = ("-addext", "extendedKeyUsage=serverAuth,clientAuth")
        openssl(*make, "-subj", f"/CN={name}", *signed, *uses, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return directory


@pytest.fixture(scope="module")
def sealed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMember]:
    certificates = EtcdCertificates(files / "server.pem", files / "server.key", files / "ca.pem")
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), certificates=certificates) as cluster:
        yield cluster.members[0]


async def test_tls_with_a_certificate_on_both_sides(sealed: EtcdMember, files: Path) -> None:
    client = {"certificate": files / "client.pem", "key": files / "client.key"}
    await use(f"etcds://{sealed.address}", ca=files / "ca.pem", **client)


async def test_what_is_wrong_about_tls_is_said(sealed: EtcdMember, etcd: EtcdMember, files: Path) -> None:
    ca = files / "ca.pem"
    client = {"certificate": files / "client.pem", "key": files / "client.key"}
    stranger = {"certificate": files / "stranger.pem", "key": files / "stranger.key"}
    url = f"etcds://{sealed.address}"
    assert "name what signed it with --config-store-ca" in await refusal(url, ca=files / "stranger.pem", **client)
    assert "give --config-store-cert and --config-store-key" in await refusal(url, ca=ca)
    assert "give --config-store-cert and --config-store-key" in await refusal(url, ca=ca, **stranger)
    assert "it ended the connection; write etcds:// if it speaks TLS" in await refusal(f"etcd://{sealed.address}")
    assert "write etcd:// if it serves no TLS" in await refusal(f"etcds://{etcd.address}", ca=ca)


async def test_what_is_wrong_about_a_certificates_file_is_said(files: Path) -> None:
    url = "etcds://127.0.0.1:1"
    none = files / "none.pem"
    assert f"{none}: No such file or directory; correct --config-store-ca" in await refusal(url, ca=none)
    assert "not PEM" in await refusal(url, ca=files / "ca.key")
    mixed = await refusal(url, certificate=files / "client.pem", key=files / "server.key")
    assert mixed.endswith(
        "not PEM, encrypted, or not of each other; correct --config-store-cert and --config-store-key"
    )
