"""Settings: which source wins, and what each mistake is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from trikv.config import (
    MasterSettings,
    SettingsError,
    WorkerSettings,
    is_loopback,
    master_settings,
    worker_settings,
)
from trikv.core.scaling import Limits

ETCD = "etcd://127.0.0.1:2379"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test stands in a directory of its own, since `trikv.toml` is looked for in the working directory."""
    monkeypatch.chdir(tmp_path)


def test_the_defaults() -> None:
    assert worker_settings({"port": 8001}, {}) == WorkerSettings(port=8001)
    assert worker_settings({"port": 8001}, {}).directory == Path("trikv-data/worker-8001")
    assert master_settings({}, {}) == MasterSettings()
    assert master_settings({}, {}).directory == Path("trikv-data/master")


def test_an_etcd_is_one_value_with_its_certificates_and_its_password() -> None:
    flags = {"config_store": "etcds://me@h:1,i:2/mine", "config_store_ca": "ca", "config_store_cert": "c",
             "config_store_key": "k"}  # fmt: skip
    store = master_settings(flags, {"TRIKV_CONFIG_STORE_PASSWORD": "secret"}).config_store
    assert store is not None
    assert (store.endpoints, store.prefix, store.tls) == (("h:1", "i:2"), "mine", True)
    assert (store.user, store.password) == ("me", "secret")
    assert (store.ca, store.certificate, store.key) == (Path("ca"), Path("c"), Path("k"))
    assert master_settings({}, {"TRIKV_MASTER_CONFIG_STORE": ETCD}).config_store is not None


def test_flags_win_over_variables_and_those_over_the_file() -> None:
    Path("trikv.toml").write_text("[master]\nmode = 'file'\nreplicas = 1\nport = 1\ntimeout_s = 1\n")
    environ = {"TRIKV_MASTER_MODE": "variable", "TRIKV_MASTER_REPLICAS": "2", "HOME": "/", "TRIKV_WORKER_PORT": "9"}
    settings = master_settings({"mode": "flag", "replicas": None, "port": None, "workers": ()}, environ)
    assert (settings.mode, settings.replicas, settings.port, settings.timeout_s) == ("flag", 2, 1, 1.0)


def test_every_setting_can_come_from_every_source() -> None:
    values: dict[str, object] = {
        "port": 0, "host": "::1", "http": "[::1]:0", "mode": "chain", "replicas": 5, "data_dir": Path("/data"),
        "workers": ("localhost:8001", "localhost:8002"), "timeout_s": 0.5, "down_after_s": 1.5,
        "settle_rate_mb": 0.25, "min_copies": 1, "insecure": True,
    }  # fmt: skip
    expected = MasterSettings(**values)  # type: ignore[arg-type]
    assert master_settings(values, {}) == expected
    as_text = {name: str(value) for name, value in values.items()} | {"workers": "localhost:8001, localhost:8002"}
    assert master_settings({}, {f"TRIKV_MASTER_{name.upper()}": text for name, text in as_text.items()}) == expected
    lines = (f"{name} = {str(value).lower() if value is True else value!r}" for name, value in values.items())
    text = "[master]\n" + "\n".join(lines).replace("(", "[").replace(")", "]").replace("PosixPath['/data']", "'/data'")
    Path("trikv.toml").write_text(text)
    assert master_settings({}, {}) == expected


@pytest.mark.parametrize("given", [("zone=a", "disk=ssd"), "zone=a, disk=ssd", {"zone": "a", "disk": "ssd"}])
def test_labels_come_as_a_list_as_a_text_or_as_a_table(given: object) -> None:
    assert worker_settings({"port": 1, "labels": given}, {}).labels == {"zone": "a", "disk": "ssd"}
    Path("trikv.toml").write_text("[worker]\nport = 1\nlabels = {zone = 'b'}\n")
    assert worker_settings({}, {}).labels == {"zone": "b"}
    assert worker_settings({}, {"TRIKV_WORKER_LABELS": "zone=c"}).labels == {"zone": "c"}


def test_a_worker_may_wait_for_its_master() -> None:
    assert worker_settings({"port": 1, "master": "none"}, {}).master == ()
    assert worker_settings({"port": 1, "master": "a:1,b:2, a:1"}, {}).master == ("a:1", "b:2")
    assert worker_settings({"port": 1}, {"TRIKV_WORKER_MASTER": "h:1 i:2"}).master == ("h:1", "i:2")
    assert worker_settings({"port": 1}, {"TRIKV_WORKER_MAX_KEYS": "none"}).max_keys is None


def test_the_file_is_the_named_one() -> None:
    Path("trikv.toml").write_text("[worker]\nport = 1\n")
    Path("other.toml").write_text("[worker]\nport = 2\n")
    Path("third.toml").write_text("[worker]\nport = 3\n")
    assert worker_settings({}, {}).port == 1
    assert worker_settings({}, {"TRIKV_CONFIG": "other.toml"}).port == 2
    assert worker_settings({}, {"TRIKV_CONFIG": "other.toml"}, Path("third.toml")).port == 3


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({}, "a worker needs a port: trikv worker PORT"),
        ({"port": 65_536}, "PORT: 65536 is not a port, 0 to 65535"),
        ({"port": -1}, "PORT: -1 is not a port"),
        ({"port": "http"}, "PORT: 'http' is not a port"),
        ({"port": "²"}, "is not a port"),
        ({"port": True}, "PORT: True is not a port"),
        ({"port": 1, "master": "8000"}, "--master: '8000' is not an address; write HOST:PORT"),
        ({"port": 1, "master": "localhost:70000"}, "--master: 'localhost:70000' is not an address"),
        ({"port": 1, "master": ","}, "--master: ',' names no master; write HOST:PORT"),
        ({"port": 1, "max_keys": 0}, "--max-keys: 0 is not a number of keys, 1 or more"),
        ({"port": 1, "labels": ("zone",)}, "--label: 'zone' is not NAME=VALUE, like zone=a"),
        ({"port": 1, "labels": ("zone=a", "zone=b")}, "--label: the label zone is given twice"),
        ({"port": 1, "labels": ("zone=a b",)}, "--label: the value of the label zone has 1 to 64"),
        ({"port": 1, "labels": 7}, "--label: 7 is not a list of labels like zone=a"),
        ({"port": 1, "storage": " "}, "--storage: ' ' is not a name"),
        ({"port": 1, "metrics": "9100"}, "--metrics: '9100' is not an address; write HOST:PORT"),
        ({"port": 1, "metrics": "0.0.0.0:9100"}, "0.0.0.0 can be reached from other machines.*--insecure"),
        ({"port": 1, "host": "0.0.0.0"}, "0.0.0.0 can be reached from other machines.*--insecure"),
    ],
)
def test_a_worker_is_told_what_it_cannot_be(flags: Mapping[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        worker_settings(flags, {})


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"replicas": 0}, "--replicas: 0 is not a number of replicas, 1 or more"),
        ({"timeout_s": 0.0}, "--timeout: 0.0 is not a time in seconds, more than 0"),
        ({"timeout_s": "soon"}, "--timeout: 'soon' is not a time"),
        ({"timeout_s": "nan"}, "--timeout: 'nan' is not a time"),
        ({"timeout_s": "inf"}, "--timeout: 'inf' is not a time"),
        ({"down_after_s": "1.4"}, "--down-after: '1.4' is not a time in seconds, 1.5 to 3,600"),
        ({"down_after_s": "inf"}, "--down-after: 'inf' is not a time in seconds"),
        ({"settle_rate_mb": 0}, "--settle-rate: 0 is not a number of MB per second, 0.1 to 10,000"),
        ({"settle_rate_mb": "fast"}, "--settle-rate: 'fast' is not a number of MB"),
        ({"min_copies": 0}, "--min-copies: 0 is not a number of copies, 1 or more"),
        ({"workers": ("localhost:1", "localhost")}, "WORKER: 'localhost' is not an address"),
        ({"http": "8080"}, "--http: '8080' is not an address"),
        ({"http": "192.168.1.5:8080"}, "192.168.1.5 can be reached from other machines"),
        ({"host": "example.org"}, "example.org can be reached from other machines"),
        ({"insecure": "perhaps"}, "--insecure: 'perhaps' is neither true nor false"),
        ({"autoscale": "3"}, "--autoscale: '3' is not MIN..MAX, two numbers of workers like 3..9"),
        ({"autoscale": "9..3", "max_load": 1}, "--autoscale: '9..3' is not MIN..MAX"),
        ({"autoscale": "0..3", "max_load": 1}, "--autoscale: '0..3' is not MIN..MAX"),
        ({"autoscale": "3..9"}, "--autoscale needs to know when: give --max-load or --max-keys"),
        (
            {"autoscale": "3..5", "max_load": 1, "start_workers": 6},
            "--start-workers 6 is more than --autoscale allows, 5; change one",
        ),
        ({"start_workers": -1}, "--start-workers: -1 is not a number of workers, 0 to 1000"),
        ({"worker_port": 70_000}, "--worker-port: 70000 is not a port"),
        ({"break_it": "perhaps"}, "--break-it: 'perhaps' is neither true nor false"),
        ({"config_store": "http://x"}, "--config-store: this is no config store; write etcd://"),
        ({"config_store": ETCD, "config_store_ca": "ca.pem"}, "certificates are for TLS; write etcds://"),
        ({"advertise": "10.0.0.1:8000"}, "--advertise is for a master among several: give --config-store with it"),
        ({"lease_s": 5}, "--lease is for a master among several: give --config-store with it"),
        ({"config_store": ETCD, "start_workers": 3}, "--start-workers and --autoscale are for a master alone"),
        ({"config_store": ETCD, "lease_s": 0.5}, "--lease: 0.5 is not a time in seconds, 2 to 60"),
        (
            {"config_store": ETCD, "host": "0.0.0.0", "insecure": True},
            "0.0.0.0 is no address that others can call: say with --advertise HOST:PORT where they reach it",
        ),
        (
            {"config_store": ETCD, "http": "[::]:80", "advertise": "h:1", "host": "::", "insecure": True},
            ":: is no address that others can call: say with --advertise-http HOST:PORT where they reach it",
        ),
        ({"max_load": 10}, "give --autoscale MIN..MAX with them"),
        ({"autoscale": "3..9", "max_load": 0}, "--max-load: 0 is not a number of requests a second"),
    ],
)
def test_a_master_is_told_what_it_cannot_be(flags: Mapping[str, object], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        master_settings(flags, {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[master]\nmod = 'x'", r"trikv.toml: \[master\] mod: no such setting; did you mean mode\?"),
        ("[worker]\nzzz = 1", r"\[worker\] zzz: no such setting; there are port, host, master, data_dir, storage"),
        ("[worker]\nexit_with_stdin = true", r"\[worker\] exit_with_stdin: no such setting"),
        ("[masters]\nmode = 'x'", r"trikv.toml: masters: there are two tables"),
        ("mode = 'x'", r"trikv.toml: mode: there are two tables"),
        ("worker = 8001", r"trikv.toml: worker: there are two tables"),
        ("[master\n", r"trikv.toml: .*line 1"),
        ("[master]\nreplicas = '3 of 5'", r"trikv.toml: \[master\] replicas: '3 of 5' is not a number of replicas"),
        ("[master]\nworkers = [8001]", r"\[master\] workers: 8001 is not a name"),
        ("[master]\nworkers = 8001", r"\[master\] workers: 8001 is not a list of addresses"),
    ],
)
def test_the_file_is_told_where_it_is_wrong(text: str, complaint: str) -> None:
    Path("trikv.toml").write_text(text)
    with pytest.raises(SettingsError, match=complaint) as error:
        master_settings({}, {})
    assert "\n" not in str(error.value)


def test_a_file_that_is_named_must_be_there() -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml: No such file"):
        master_settings({}, {}, Path("missing.toml"))
    Path("binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"binary\.toml"):
        master_settings({}, {}, Path("binary.toml"))


def test_an_unknown_variable_of_a_role_is_named() -> None:
    with pytest.raises(
        SettingsError, match="TRIKV_MASTER_TIMEOUT: no such setting; did you mean TRIKV_MASTER_TIMEOUT_S"
    ):
        master_settings({}, {"TRIKV_MASTER_TIMEOUT": "1"})
    with pytest.raises(SettingsError, match="TRIKV_WORKER_PORT: 'x' is not a port"):
        worker_settings({}, {"TRIKV_WORKER_PORT": "x"})


SERVICE = {
    "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "8000", "SERVICE_PORT_HTTP": "8080", "PORT": "tcp://10.0.0.1:8000",
    "PORT_8000_TCP": "tcp://10.0.0.1:8000", "PORT_8000_TCP_PROTO": "tcp", "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_ADDR": "10.0.0.1",
}  # fmt: skip


ROLES = ("MASTER", "WORKER", "WORKER_METRICS")


def test_the_variables_that_kubernetes_sets_for_a_service_are_no_settings() -> None:
    environ = {f"TRIKV_{role}_{name}": value for role in ROLES for name, value in SERVICE.items()}
    settings = master_settings({}, environ)
    assert settings == MasterSettings()
    assert len(settings.notes) == 1
    assert "TRIKV_MASTER_PORT_8000_TCP_ADDR" in settings.notes[0]
    assert "Kubernetes" in settings.notes[0]
    assert worker_settings({"port": 8001}, environ) == WorkerSettings(8001)
    ipv6 = {"TRIKV_MASTER_PORT": "tcp://[fd00::1]:8000", "TRIKV_MASTER_SERVICE_HOST": "fd00::1"}
    assert master_settings({}, ipv6) == MasterSettings()
    assert master_settings({}, {"TRIKV_MASTER_PORT": "8001"}).port == 8001


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("TRIKV_MASTER_PORT", "tcp://", "TRIKV_MASTER_PORT: 'tcp://' is not a port"),
        ("TRIKV_MASTER_SERVICE_HOST", "my host", "TRIKV_MASTER_SERVICE_HOST: no such setting"),
        ("TRIKV_MASTER_PORTS", "8000", "TRIKV_MASTER_PORTS: no such setting"),
        ("TRIKV_MASTER_NOTES", "x", "TRIKV_MASTER_NOTES: no such setting"),
    ],
)
def test_what_only_resembles_them_is_an_error(variable: str, value: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        master_settings({}, {variable: value})


def test_a_file_that_nobody_named_is_told_of() -> None:
    Path("trikv.toml").write_text("[master]\nport = 1\n")
    settings = master_settings({}, {})
    assert [str(Path("trikv.toml").absolute()) in note for note in settings.notes] == [True]
    assert master_settings({}, {}, Path("trikv.toml")).notes == ()


@pytest.mark.parametrize(
    ("data_dir", "complaint"),
    [("~nosuchuser/x", "no such user"), ("\udcff", "not UTF-8"), ("a\0b", "NUL"), ("", "not a name")],
)
def test_a_data_directory_that_can_be_none(data_dir: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=f"--data-dir: .*{complaint}") as error:
        worker_settings({"port": 1, "data_dir": data_dir}, {})
    assert "\n" not in str(error.value)


def test_insecure_allows_what_loopback_does_not() -> None:
    assert worker_settings({"port": 1, "host": "0.0.0.0", "insecure": True}, {}).host == "0.0.0.0"
    assert [host for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1") if not is_loopback(host)] == []
    assert [host for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "") if is_loopback(host)] == []


def test_how_a_cluster_scales_by_itself() -> None:
    settings = master_settings({"autoscale": "3..9", "max_load": "500"}, {"TRIKV_MASTER_MAX_KEYS": "1000"})
    assert settings.autoscale == Limits(3, 9, max_load=500.0, max_keys=1000)
    assert master_settings({}, {}).autoscale is None


def test_workers_that_the_master_starts_are_a_setting_of_every_source(tmp_path: Path) -> None:
    assert master_settings({}, {}).break_it is False
    settings = master_settings({"start_workers": "5"}, {"TRIKV_MASTER_BREAK_IT": "yes"})
    assert (settings.start_workers, settings.worker_port, settings.break_it) == (5, 0, True)
    file = tmp_path / "trikv.toml"
    file.write_text("[master]\nstart_workers = 3\nworker_port = 8001\nbreak_it = true\n")
    settings = master_settings({}, {}, file)
    assert (settings.start_workers, settings.worker_port, settings.break_it) == (3, 8001, True)
