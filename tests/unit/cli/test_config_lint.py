import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from shared import ROOT, SHIPPED_STYLES

from serve_app.cli.config_lint import lint

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PROD: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "prod.yaml").read_text(encoding="utf-8"))

APPLICATION = ("applications", 0)
INGRESS = (*APPLICATION, "deployments", 0)
CODEC = (*APPLICATION, "deployments", 1)
STYLIZER = (*APPLICATION, "deployments", 2)

Place = Sequence[str | int]


def changed(place: Place, value: object) -> dict[str, Any]:
    """The production config with one value set."""
    config = copy.deepcopy(PROD)
    inner: Any = config
    for step in place[:-1]:
        inner = inner.setdefault(step, {}) if isinstance(inner, dict) else inner[step]
    inner[place[-1]] = value
    return config


@pytest.fixture
def findings(tmp_path: Path) -> Callable[[dict[str, Any] | str], list[str]]:
    """What the lint says of a config, the file's name taken off."""

    def find(config: dict[str, Any] | str) -> list[str]:
        path = tmp_path / "serve.yaml"
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        said = lint(path)
        assert all(finding.startswith(f"{path}: ") for finding in said)
        return [finding.removeprefix(f"{path}: ") for finding in said]

    return find


Findings = Callable[[dict[str, Any] | str], list[str]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_is_fine(path: Path) -> None:
    assert lint(path) == []


def test_both_configs_are_shipped() -> None:
    assert {path.name for path in CONFIGS} >= {"local.yaml", "prod.yaml"}


@pytest.mark.parametrize(
    ("place", "meant"),
    [
        (("http_option",), "http_options"),
        (("http_options", "prot"), "port"),
        (("logging_config", "log_levle"), "log_level"),
        ((*APPLICATION, "route_prefx"), "route_prefix"),
        ((*APPLICATION, "runtime_env", "env_var"), "env_vars"),
        ((*APPLICATION, "args", "devise"), "device"),
        ((*STYLIZER, "max_ongoing_request"), "max_ongoing_requests"),
        ((*STYLIZER, "ray_actor_options", "num_gpu"), "num_gpus"),
        ((*STYLIZER, "ray_actor_options", "runtime_env", "workingdir"), "working_dir"),
        ((*STYLIZER, "autoscaling_config", "min_replica"), "min_replicas"),
        ((*STYLIZER, "backpressure_config", "retry_after"), "retry_after_s"),
        ((*STYLIZER, "logging_config", "encodin"), "encoding"),
        ((*STYLIZER, "user_config", "max_batchsize"), "max_batch_size"),
        ((*CODEC, "user_config", "max_pixel"), "max_pixels"),
    ],
)
def test_misspelt_key_is_named_by_its_path_and_the_one_that_was_meant(
    findings: Findings, place: Place, meant: str
) -> None:
    path = ".".join(map(str, place))
    assert f"{path}: unknown key, did you mean {meant}?" in findings(changed(place, {}))


@pytest.mark.parametrize("place", [(*STYLIZER, "backpressure_config", "retry_after"), ("logging_config", "levels")])
def test_misspelt_key_is_named_once(findings: Findings, place: Place) -> None:
    assert len(findings(changed(place, 3))) == 1


def test_key_of_another_deployment_is_unknown_here(findings: Findings) -> None:
    assert findings(changed((*CODEC, "user_config", "default_style"), "toon")) == [
        "applications.0.deployments.1.user_config.default_style: unknown key "
        "(known: max_pixels, memory_bytes, decode_timeout_s, decoder_processes, background_places, "
        "retire_after_s, retire_at_bytes)"
    ]


def test_ingress_that_could_not_refuse_is_found(findings: Findings) -> None:
    assert findings(changed((*INGRESS, "max_ongoing_requests"), 48)) == [
        "applications.0.deployments.0.max_ongoing_requests: 48 is not above queue_most_pictures (48), so a full "
        "Ingress could not even refuse"
    ]


def test_unknown_deployment_is_named_with_those_that_there_are(findings: Findings) -> None:
    assert findings(changed((*STYLIZER, "name"), "Stylist")) == [
        "applications.0.deployments.2.name: there is no deployment Stylist (known: Ingress, Codec, Stylizer, JobRunner)"
    ]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("proxy_location",), "Everywhere", "Input should be 'Disabled', 'HeadOnly' or 'EveryNode'"),
        (("http_options", "port"), "eight", "Input should be a valid integer"),
        (("applications",), {}, "Input should be a valid list"),
        ((*APPLICATION, "args", "device"), "gpu", "Input should be 'auto', 'cpu' or 'cuda'"),
        ((*APPLICATION, "args", "threads"), "all", "Input should be 'share' or 'host'"),
        ((*APPLICATION, "args"), ["device"], "Input should be a valid dictionary"),
        ((*STYLIZER, "max_ongoing_requests"), "many", "Input should be a valid integer"),
        ((*STYLIZER, "ray_actor_options", "num_gpus"), "a quarter", "Input should be a valid number"),
        ((*STYLIZER, "user_config", "max_batch_size"), 0, "Input should be greater than 0"),
        ((*STYLIZER, "user_config"), ["max_batch_size"], "Input should be a valid dictionary"),
        # Serve's schema keeps this one as a plain dictionary, and Serve finds out only when it deploys:
        ((*STYLIZER, "autoscaling_config", "min_replicas"), "few", "Input should be a valid integer"),
    ],
)
def test_wrong_value_is_named_by_its_path(findings: Findings, place: Place, value: object, said: str) -> None:
    path = ".".join(map(str, place))
    assert any(finding.startswith(f"{path}: {said}") for finding in findings(changed(place, value)))


def test_autoscaling_bounds_that_contradict_each_other_are_named(findings: Findings) -> None:
    (finding,) = findings(changed((*STYLIZER, "autoscaling_config", "min_replicas"), 99))
    assert finding.startswith("applications.0.deployments.2.autoscaling_config")


def test_environment_variable_that_is_no_text_is_named(findings: Findings) -> None:
    (finding,) = findings(changed((*APPLICATION, "runtime_env", "env_vars"), {"OMP_NUM_THREADS": 1}))
    assert finding.startswith("applications.0.runtime_env.env_vars")


@pytest.mark.parametrize("import_path", ["other.app:build", "serve_app.app:bild", "serve_app.app", 7])
def test_import_path_of_another_application_is_named(findings: Findings, import_path: object) -> None:
    found = findings(changed((*APPLICATION, "import_path"), import_path))
    said = f"this service is built by serve_app.app:build, not by {import_path}"
    assert f"applications.0.import_path: {said}" in found


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("http_options", "port"), 70_000, "must be from 1 to 65535, not 70000"),
        (("http_options", "port"), 0, "must be from 1 to 65535, not 0"),
        ((*APPLICATION, "route_prefix"), "anime", "must start with / and, but for / itself, not end with it"),
        ((*APPLICATION, "route_prefix"), "/anime/", "must start with / and, but for / itself, not end with it"),
        ((*INGRESS, "user_config", "queue_time_s"), float("inf"), "must be a finite number, not inf"),
        (("http_options", "request_timeout_s"), float("nan"), "must be a finite number, not nan"),
        (
            (*STYLIZER, "autoscaling_config", "policy", "policy_kwargs", "busy"),
            float("-inf"),
            "must be a finite number, not -inf",
        ),
        ((*INGRESS, "user_config", "queue_least_pictures"), 49, "49 is above queue_most_pictures (48)"),
        ((*INGRESS, "user_config", "default_style"), "shinkai", "There is no style 'shinkai' here; installed are: "),
    ],
)
def test_value_that_serve_takes_and_nothing_can_work_with_is_named(
    findings: Findings, place: Place, value: object, said: str
) -> None:
    path = ".".join(map(str, place))
    assert any(finding.startswith(f"{path}: {said}") for finding in findings(changed(place, value)))


def test_default_style_whose_file_is_damaged_is_named(findings: Findings, styles_dir: Path) -> None:
    (styles_dir / "mine.safetensors").write_bytes(b"damaged")
    assert findings(PROD) == []
    assert findings(changed((*INGRESS, "user_config", "default_style"), "mine")) == [
        "applications.0.deployments.0.user_config.default_style: The style 'mine' is left out, because its file cannot "
        f"be used; the log says why. Installed are: {', '.join(SHIPPED_STYLES)}."
    ]


def test_time_limit_of_serve_that_is_not_above_that_of_the_ingress_is_named(findings: Findings) -> None:
    (finding,) = findings(changed(("http_options", "request_timeout_s"), 55))
    assert finding.startswith("http_options.request_timeout_s: 55 is not above the Ingress's timeout_s (55)")


def test_route_prefix_of_two_applications_is_named(findings: Findings) -> None:
    config = copy.deepcopy(PROD)
    config["applications"].append(config["applications"][0] | {"name": "other"})
    assert "applications.1.route_prefix: / is taken by applications.0" in findings(config)


def test_merged_mappings_are_read_as_serve_reads_them(findings: Findings) -> None:
    text = (ROOT / "configs" / "local.yaml").read_text(encoding="utf-8")
    anchored = text.replace("ray_actor_options: {num_cpus: 0.1}", "ray_actor_options: &small {num_cpus: 0.1}", 1)
    merged = anchored.replace("          num_cpus: 0.4\n", "          <<: *small\n          num_cpus: 0.4\n")
    assert merged.count("*small") == 1
    assert findings(merged) == []
    assert findings(merged.replace("{num_cpus: 0.1}", "{num_cpu: 0.1}")) != []


def test_list_as_a_key_is_named(findings: Findings) -> None:
    (finding,) = findings("? [a, b]\n: c\napplications: []\n")
    assert finding.startswith("not YAML: a list or a mapping is used as a key")


@pytest.mark.parametrize("text", ["applications: [", "a: b: c", "\tapplications: []", "!!python/object:os.system {}"])
def test_file_that_is_not_yaml_is_refused_in_one_line(findings: Findings, text: str) -> None:
    (finding,) = findings(text)
    assert finding.startswith("not YAML: ")
    assert "\n" not in finding


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "- applications\n", "applications"])
def test_file_without_keys_is_refused(findings: Findings, text: str) -> None:
    assert findings(text) == ["not a Serve config: the file must hold keys such as `applications`"]


def test_key_given_twice_is_named(findings: Findings) -> None:
    text = (ROOT / "configs" / "local.yaml").read_text(encoding="utf-8")
    (finding,) = findings(text.replace("  port: 8000\n", "  port: 8000\n  port: 9000\n"))
    assert "port" in finding


def test_deployment_given_twice_is_named(findings: Findings) -> None:
    config = copy.deepcopy(PROD)
    config["applications"][0]["deployments"].append({"name": "Codec"})
    assert any("Codec" in finding for finding in findings(config))


def test_missing_applications_are_named(findings: Findings) -> None:
    assert findings("proxy_location: HeadOnly\n") == ["applications: Field required"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.yaml"
    assert lint(path) == [f"{path}: cannot be read: No such file or directory"]


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_bytes(b"\xff\xfe\0")
    (finding,) = lint(path)
    assert finding.startswith(f"{path}: not YAML: ")


def test_batches_that_could_never_fill_are_named(findings: Findings) -> None:
    assert findings(changed((*STYLIZER, "max_ongoing_requests"), 15)) == [
        "applications.0.deployments.2.max_ongoing_requests: 15 is less than twice max_batch_size (8), so batches would "
        "never fill while one is being painted"
    ]


def test_batches_that_could_never_fill_with_serves_own_default_are_named(findings: Findings) -> None:
    config = copy.deepcopy(PROD)
    del config["applications"][0]["deployments"][2]["max_ongoing_requests"]
    (finding,) = findings(config)
    assert finding.startswith(
        "applications.0.deployments.2.max_ongoing_requests: 5 is less than twice max_batch_size (8)"
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max_byte", 1, "guard.max_byte: unknown key, did you mean max_bytes?"),
        ("max_bytes", "much", "guard.max_bytes: could not parse value and unit from byte string"),
        ("allowed_hosts", ["http://anime.example.org"], "guard.allowed_hosts: String should match pattern"),
        ("allowed_hosts", ["anime.example.org:8000/"], "guard.allowed_hosts: String should match pattern"),
        ("rate_window_s", 0, "guard.rate_window_s: Input should be greater than 0"),
        (
            "max_bytes",
            "31MiB",
            "guard.max_bytes: 32505856 is under the Ingress's max_bytes (33554432), which then never counts",
        ),
        ("max_form_bytes", "31MiB", "guard.max_form_bytes: 32505856 is under max_bytes (33554432)"),
        (
            "max_form_bytes",
            "100MiB",
            "guard.max_form_bytes: 104857600 is under the Ingress's max_form_bytes (268435456)",
        ),
        (
            "max_forwarded",
            48,
            "guard.max_forwarded: 48 is not above the Ingress's queue_most_pictures (48), so that it can ",
        ),
        (
            "max_forwarded",
            96,
            "guard.max_forwarded: 96 is not above the Ingress's queue_most_pictures (48), so that it can ",
        ),
    ],
)
def test_settings_of_the_guard_are_checked(findings: Findings, key: str, value: object, said: str) -> None:
    (finding,) = findings(changed(("guard", key), value))
    assert finding.startswith(said)


@pytest.mark.parametrize("block", [False, None, {}])
def test_guard_may_be_off_or_have_its_defaults(findings: Findings, block: object) -> None:
    assert findings(changed(("guard",), block)) == []


@pytest.mark.parametrize("block", [{}, {"host": "0.0.0.0", "port": 9000}, None, False])
def test_metrics_may_be_anywhere_or_off(findings: Findings, block: object) -> None:
    assert findings(changed(("metrics",), block)) == []


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"prot": 9000}, "metrics.prot: unknown key, did you mean port?"),
        ({"port": 0}, "metrics.port: Input should be greater than or equal to 1"),
        ({"port": 8000}, "metrics.port: 8000 is the service's own (http_options.port)"),
        ("on", "metrics: must hold keys"),
    ],
)
def test_settings_of_the_metrics_are_checked(findings: Findings, block: object, said: str) -> None:
    (finding,) = findings(changed(("metrics",), block))
    assert finding.startswith(said)


def test_guard_that_is_no_mapping_is_named(findings: Findings) -> None:
    assert findings(changed(("guard",), True)) == ["guard: must hold keys"]


NO_WORD_ON_KEYS = (
    "not given, and the service listens on more than this machine: set file:/ABSOLUTE/PATH or env:VARIABLE for API "
    "keys, or off to let anybody paint"
)


def without_keys(host: object) -> dict[str, Any]:
    config = changed(("http_options", "host"), host)
    del config["applications"][0]["deployments"][0]["user_config"]["keys"]
    return config


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "paint.example"])
def test_service_for_other_machines_without_a_word_on_keys_is_named(findings: Findings, host: str) -> None:
    place = "applications.0.deployments.0.user_config.keys"
    assert findings(without_keys(host)) == [f"{place}: {NO_WORD_ON_KEYS}"]
    said_nothing = changed((*INGRESS, "user_config", "keys"), None)
    assert findings(said_nothing) == [f"{place}: {NO_WORD_ON_KEYS}"]


@pytest.mark.parametrize("without", ["host", "http_options", "user_config", "Ingress"])
def test_word_on_keys_is_missed_wherever_serves_defaults_stand(findings: Findings, without: str) -> None:
    config = without_keys("0.0.0.0")
    if without == "host":
        del config["http_options"]["host"]
    elif without == "http_options":
        del config["http_options"]
    elif without == "user_config":
        del config["applications"][0]["deployments"][0]["user_config"]
        del config["applications"][0]["deployments"][0]["max_ongoing_requests"]
    else:
        del config["applications"][0]["deployments"][0]
    assert any(finding.endswith(f"user_config.keys: {NO_WORD_ON_KEYS}") for finding in findings(config))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_service_for_this_machine_alone_needs_no_word_on_keys(findings: Findings, host: str) -> None:
    assert findings(without_keys(host)) == []


@pytest.mark.parametrize("keys", [True, "on", "keys", "file:keys", {"file": "/keys"}])
def test_keys_that_are_neither_off_nor_a_place_are_named(findings: Findings, keys: object) -> None:
    place = "applications.0.deployments.0.user_config.keys"
    assert findings(changed((*INGRESS, "user_config", "keys"), keys)) == [
        f"{place}: must be off, file:/ABSOLUTE/PATH or env:VARIABLE"
    ]


def test_share_for_clients_without_a_key_where_there_are_no_keys_is_named(findings: Findings) -> None:
    config = changed((*INGRESS, "user_config", "anonymous_share"), 0.1)
    assert findings(config) == ["applications.0.deployments.0.user_config.anonymous_share: has no effect without keys"]
    config["applications"][0]["deployments"][0]["user_config"]["keys"] = "file:/etc/animegan/keys"
    assert findings(config) == []


def test_prod_says_a_word_on_keys_and_so_does_local() -> None:
    for path in CONFIGS:
        deployments = yaml.safe_load(path.read_text())["applications"][0]["deployments"]
        assert deployments[0]["user_config"]["keys"] is False, path


def with_runner(enabled: bool, **user_config: object) -> dict[str, Any]:
    """The production config with a JobRunner."""
    config = changed((*APPLICATION, "args", "jobs"), {"enabled": enabled, **CLUSTER_JOBS})
    config["applications"][0]["deployments"].append({"name": "JobRunner", "user_config": user_config})
    return config


CLUSTER_JOBS = {"database_url": "postgresql+psycopg://animegan@db/animegan", "blobs_url": "s3://bucket/folder"}


def test_runner_of_jobs_that_are_off_is_named_because_serve_would_refuse_it(findings: Findings) -> None:
    assert findings(with_runner(enabled=True)) == []
    (said,) = findings(with_runner(enabled=False))
    assert said == (
        "applications.0.deployments.3.name: there is no deployment JobRunner while jobs are off; set "
        "applications.0.args.jobs.enabled, or leave the block out"
    )


def test_jobs_that_would_leave_no_place_for_requests_are_named(findings: Findings) -> None:
    (said,) = findings(with_runner(enabled=True, stylizer_places=16))
    assert said == (
        "applications.0.deployments.3.user_config.stylizer_places: 16 is not under the Stylizer's max_ongoing_requests "
        "(16), so jobs would leave no place for requests"
    )
    assert findings(with_runner(enabled=True, stylizer_places=15)) == []


JOBS = (*APPLICATION, "args", "jobs")
SHARED = {"enabled": True, "database_url": "postgresql+psycopg://me@db/jobs", "blobs_url": "s3://bucket/jobs"}


def test_settings_of_jobs_are_checked_by_their_own_keys(findings: Findings) -> None:
    assert findings(changed(JOBS, {"keep_for": 5})) == [
        "applications.0.args.jobs.keep_for: unknown key, did you mean keep_for_s?"
    ]
    (found,) = findings(changed(JOBS, {"enabled": "maybe"}))
    assert found.startswith("applications.0.args.jobs.enabled: Input should be a valid boolean")
    (found,) = findings(changed(JOBS, SHARED | {"database_url": "mysql://db"}))
    assert found.startswith("applications.0.args.jobs.database_url: ")


@pytest.mark.parametrize(
    ("webhooks", "said"),
    [
        ({"secret": False}, ""),  # YAML's `off`
        ({"secret": "file:/etc/animegan/webhook-secret", "allow_networks": ["10.1.0.0/16", "fd12::/16"]}, ""),
        ({"secrets": "off"}, "secrets: unknown key, did you mean secret?"),
        ({"secret": "whsec_hunter2"}, "secret: must be off, file:/ABSOLUTE/PATH or env:VARIABLE"),
        ({"allow_networks": ["10.1.0.1/16"]}, "allow_networks: Input is not a valid IPv4 network"),
        ({"timeout_s": 0}, "timeout_s: Input should be greater than 0"),
    ],
)
def test_settings_of_webhooks_are_checked_by_their_own_keys(
    findings: Findings, webhooks: dict[str, Any], said: str
) -> None:
    found = findings(changed((*JOBS, "webhooks"), webhooks))
    assert len(found) == bool(said) or "network" in said
    assert not said or found[0].startswith(f"applications.0.args.jobs.webhooks.{said}")
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("local", "keys"),
    [
        ({"database_url": None, "blobs_url": None}, ["blobs_url", "database_url"]),
        ({"database_url": "sqlite:////srv/jobs.sqlite3"}, ["database_url"]),
        ({"blobs_url": "/srv/blobs"}, ["blobs_url"]),
        ({"blobs_url": "file:///srv/blobs"}, ["blobs_url"]),
        ({}, []),
    ],
)
@pytest.mark.parametrize("proxy_location", ["EveryNode", None])
def test_jobs_on_one_node_of_a_cluster_are_named(
    findings: Findings, local: dict[str, Any], keys: list[str], proxy_location: str | None
) -> None:
    config = changed(JOBS, SHARED | local)
    if proxy_location is None:  # Serve's default
        del config["proxy_location"]
    found = sorted(findings(config))
    assert [finding.split(": ")[0] for finding in found] == [f"applications.0.args.jobs.{key}" for key in keys]
    assert all("a replica may run on any node" in finding for finding in found)


def test_jobs_of_one_machine_may_be_on_it_and_those_that_are_off_anywhere(findings: Findings) -> None:
    assert findings(changed(JOBS, {"enabled": False})) == []
    config = changed(JOBS, {"enabled": True})
    config["proxy_location"] = "HeadOnly"
    assert findings(config) == []


def test_jobs_are_on_in_the_config_of_one_machine_and_off_in_that_of_a_cluster() -> None:
    enabled = {
        path.name: yaml.safe_load(path.read_text())["applications"][0]["args"]["jobs"]["enabled"] for path in CONFIGS
    }
    assert (enabled["local.yaml"], enabled["prod.yaml"]) == (True, False)
