from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.errors import SettingsError
from serve_app.settings import (
    CodecSettings,
    IngressSettings,
    JobRunnerSettings,
    JobsSettings,
    Settings,
    StrictModel,
    StylizerSettings,
    load_settings,
)


def refusal(model: type[StrictModel], values: dict[str, Any], where: str = "args") -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(model, values, where)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "values", "sentence"),
    [
        (Settings, {"devise": "cpu"}, "args.devise: unknown key, did you mean device?"),
        (IngressSettings, {"max_sides": 9}, "args.max_sides: unknown key, did you mean max_side?"),
        (CodecSettings, {"max_pixel": 9}, "args.max_pixel: unknown key, did you mean max_pixels?"),
        (StylizerSettings, {"batch_size": 9}, "args.batch_size: unknown key, did you mean max_batch_size?"),
        (Settings, {"jobs": {"leas_s": 9}}, "args.jobs.leas_s: unknown key, did you mean lease_s?"),
    ],
)
def test_unknown_key_is_named_with_the_key_that_was_meant(
    model: type[StrictModel], values: dict[str, Any], sentence: str
) -> None:
    assert refusal(model, values) == sentence


def test_unknown_key_that_resembles_nothing_is_named_with_all_keys() -> None:
    assert (
        refusal(StylizerSettings, {"zzz": 1}, "Stylizer.user_config")
        == "Stylizer.user_config.zzz: unknown key (known: max_batch_size, linger_s, release_after_s, stuck_after_s, "
        "background_after_s, retire_after_s, retire_at_bytes)"
    )


@pytest.mark.parametrize(
    ("model", "values", "sentence"),
    [
        (Settings, {"device": "gpu"}, "args.device: Input should be 'auto', 'cpu' or 'cuda'"),
        (Settings, {"precision": "fp8"}, "args.precision: Input should be 'auto', 'fp32', 'fp16' or 'bf16'"),
        (Settings, {"jobs": {"lease_s": 0}}, "args.jobs.lease_s: Input should be greater than 0"),
        (Settings, {"jobs": True}, "args.jobs: Input should be a valid dictionary or instance of JobsSettings"),
        (IngressSettings, {"max_side": 7}, "args.max_side: Input should be greater than or equal to 8"),
        (IngressSettings, {"max_bytes": 0}, "args.max_bytes: Input should be greater than 0"),
        (CodecSettings, {"max_pixels": "many"}, "args.max_pixels: Input should be a valid integer, unable to parse"),
        (StylizerSettings, {"max_batch_size": 0}, "args.max_batch_size: Input should be greater than 0"),
        (StylizerSettings, {"stuck_after_s": None}, "args.stuck_after_s: Input should be a valid integer"),
    ],
)
def test_wrong_value_is_named_by_its_key(model: type[StrictModel], values: dict[str, Any], sentence: str) -> None:
    assert refusal(model, values).startswith(sentence)


def test_every_wrong_key_is_named_at_once() -> None:
    message = refusal(Settings, {"device": "gpu", "precison": "fp16"})
    assert message == (
        "args.device: Input should be 'auto', 'cpu' or 'cuda'; args.precison: unknown key, did you mean precision?"
    )


@pytest.mark.parametrize("threads", [1, 6, "share", "host"])
def test_threads_may_be_a_number_or_a_word(threads: object) -> None:
    assert load_settings(Settings, {"threads": threads}, "args").threads == threads


@pytest.mark.parametrize("threads", [0, -1, 2.5, "all", None])
def test_other_threads_are_refused_under_the_key_as_it_is_written(threads: object) -> None:
    findings = refusal(Settings, {"threads": threads}).split("; ")
    assert {finding.split(": ")[0] for finding in findings} == {"args.threads"}
    assert "args.threads: Input should be 'share' or 'host'" in findings


def test_styles_dir_becomes_a_path() -> None:
    assert load_settings(Settings, {"styles_dir": "/srv/styles"}, "args").styles_dir == Path("/srv/styles")


@pytest.mark.parametrize(
    "model", [Settings, IngressSettings, CodecSettings, StylizerSettings, JobsSettings, JobRunnerSettings]
)
def test_settings_are_complete_without_any_key_and_cannot_be_changed(model: type[StrictModel]) -> None:
    settings = load_settings(model, {}, "args")
    with pytest.raises(ValidationError, match="Instance is frozen"):
        setattr(settings, next(iter(model.model_fields)), "changed")


@pytest.mark.parametrize(("value", "size"), [("600MB", 600_000_000), ("2GiB", 2 * 2**30), (1000, 1000)])
def test_bytes_are_a_number_or_have_a_unit(value: object, size: int) -> None:
    assert load_settings(Settings, {"memory_bytes": value}, "args").memory_bytes == size


@pytest.mark.parametrize("value", [0, "-1MB", "much"])
def test_budget_of_no_bytes_is_refused(value: object) -> None:
    assert refusal(Settings, {"memory_bytes": value}, "args").startswith("args.memory_bytes: ")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (False, "off"),  # as YAML 1.1 reads a bare off
        ("off", "off"),
        (None, None),
        ("file:/etc/animegan/keys", "file:/etc/animegan/keys"),
        ("env:ANIMEGAN_KEYS", "env:ANIMEGAN_KEYS"),
    ],
)
def test_keys_are_off_or_a_place(said: object, kept: str | None) -> None:
    assert load_settings(IngressSettings, {"keys": said}, "args").keys == kept


@pytest.mark.parametrize(
    "said",
    [
        True,  # a bare on
        "on",
        "",
        "OFF ",
        0,
        [],
        {"file": "/etc/animegan/keys"},
        "/etc/animegan/keys",
        "file:",
        "file:keys",
        "file:~/keys",
        "env:",
        "env:2ND",
        "env:A B",
        "ag_a-key-by-mistake",
    ],
)
def test_anything_else_said_of_keys_is_refused_with_what_may_be_and_is_not_shown(said: object) -> None:
    message = refusal(IngressSettings, {"keys": said})
    assert message == "args.keys: must be off, file:/ABSOLUTE/PATH or env:VARIABLE"


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "some"])
def test_anonymous_share_is_a_part_of_one(share: object) -> None:
    assert refusal(IngressSettings, {"anonymous_share": share}).startswith("args.anonymous_share: Input should be ")
