import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from shared import ROOT

from serve_app.cli.memory_plan import FULL, Service, differences, largest_side, settings_that_fit
from serve_app.cli.plan import as_deployment, read_service
from serve_app.engine.memory import MemoryModel
from serve_app.frames import Size
from serve_app.settings import MIB
from serve_app.web.openai_edits import HELD_BYTES
from serve_app.web.openai_uploads import most_body_bytes

RunCommand = Callable[..., int]
LOCAL, PROD = (ROOT / "configs" / name for name in ("local.yaml", "prod.yaml"))


@pytest.fixture(scope="module")
def local() -> Service:
    """configs/local.yaml on two cores."""
    return read_service(LOCAL, cores=2)


@pytest.fixture(scope="module")
def prod() -> Service:
    return read_service(PROD, cores=16)


def test_the_prediction_is_above_what_the_service_was_measured_to_take(local: Service) -> None:
    """docs/benchmarks.md: 512 x 512 in fp32 on two cores, PSS of all processes; little is uploaded or decoded."""
    service = local.with_max_side(512).with_setting("args", precision="fp32")
    idle = sum(part.get("processes", 0) for part in service.parts.values())
    painting = service.parts["Stylizer"]["painting"]
    assert 2_133_000_000 < idle + painting < 1.2 * 2_133_000_000


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_painting_is_what_the_engine_plans_for_the_pictures_that_are_painted_side_by_side(
    local: Service, batch: int
) -> None:
    service = local.with_setting("stylizer", max_batch_size=batch).with_setting("args", precision="fp32")
    planned = MemoryModel("fp32").planned_bytes(Size(1024, 1024), slots=min(batch, 2))
    assert service.parts["Stylizer"]["painting"] == planned


def test_a_budget_bounds_painting(local: Service) -> None:
    service = local.with_setting("args", precision="fp32", memory_bytes="400MiB")
    assert service.parts["Stylizer"]["painting"] == 400 * MIB
    assert list(service.problems()) == []


def test_each_upload_is_counted_where_it_lies(local: Service) -> None:
    smaller = local.with_setting("guard", max_forwarded_bytes=16 * MIB, max_form_bytes=32 * MIB, max_bytes=32 * MIB)
    smaller = smaller.with_setting("ingress", max_form_bytes=32 * MIB)
    assert local.parts["Ingress"]["uploads"] == 256 * MIB  # one form of an album, alone
    assert smaller.uploads_bytes == 32 * MIB  # one photograph, alone
    body = most_body_bytes(32 * MIB, is_form=False)  # the same in base64
    assert smaller.parts["Ingress"]["uploads"] == body
    saved = local.parts["proxy"]["uploads"] - smaller.parts["proxy"]["uploads"]
    assert saved == 256 * MIB - body


def test_without_a_guard_every_admitted_photograph_may_be_as_large_as_any(local: Service) -> None:
    assert replace(local, guard=None).uploads_bytes == 64 * 32 * MIB


def test_an_ingress_decodes_one_body_of_json_and_holds_ten_of_the_largest_pictures(local: Service) -> None:
    part = local.parts["Ingress"]
    assert part["decoding"] == pytest.approx(32 * MIB * 4 / 3, abs=4)
    assert part["frames"] == pytest.approx(10 * 4 * 1024**2 * 4 / 3, abs=40)
    assert local.with_max_side(256).parts["Ingress"]["frames"] == HELD_BYTES


def test_another_stylizer_costs_a_process_and_its_painting(local: Service) -> None:
    two = replace(local.deployments["Stylizer"], replicas=2)
    more = replace(local, deployments={**local.deployments, "Stylizer": two})
    grown = sum(more.containers()["all"].values()) - sum(local.containers()["all"].values())
    frames = more.frames_bytes - local.frames_bytes
    assert grown == sum(local.parts["Stylizer"].values()) + frames
    assert frames == local.stylizer.max_batch_size * 3 * 1024**2


def test_a_limit_leaves_the_part_above_which_ray_kills_replicas(local: Service) -> None:
    for name, parts in local.containers().items():
        assert sum(parts.values()) <= FULL * local.limit_bytes(name)


def test_the_head_of_a_cluster_holds_no_replica(prod: Service) -> None:
    assert set(prod.containers()["head"]) == {"head", "node", "proxy"}
    assert set(prod.containers()["Codec"]) == {"node", "proxy", "Codec", "frames"}


def test_the_shipped_configs_grant_replicas_what_they_may_take(prod: Service, local: Service) -> None:
    assert list(prod.problems()) == []
    assert list(local.problems()) == []


def test_a_replica_that_is_granted_too_little_memory_is_a_problem(prod: Service) -> None:
    (problem,) = prod.with_setting("codec", memory_bytes="4GiB").problems()
    assert problem.startswith("Codec.ray_actor_options.memory (3,072 MiB) is under")


def test_a_budget_that_holds_no_painting_is_a_problem_that_names_a_side_that_fits(local: Service) -> None:
    service = local.with_setting("args", memory_bytes="100MiB")
    (problem,) = service.problems()
    assert "does not hold one painting of 1024 x 1024" in problem
    side = int(problem.rsplit(" ", 1)[1].rstrip("."))
    assert list(service.with_max_side(side).problems()) == []
    assert list(service.with_max_side(side + 16).problems()) != []


def test_a_card_that_holds_no_painting_beside_its_replicas_is_a_problem(prod: Service) -> None:
    assert list(prod.problems(card_bytes=16 * 1024 * MIB)) == []
    *others, problem = prod.with_max_side(4096).problems(card_bytes=8 * 1024 * MIB)
    assert not any("card" in other for other in others)
    assert "does not hold one painting of 4096 x 4096" in problem


@pytest.mark.parametrize("gib", [2.5, 3, 4, 5])
def test_settings_that_fit_do_fit_and_change_no_more_than_needed(local: Service, gib: float) -> None:
    limit = int(gib * 1024 * MIB)
    fitting = settings_that_fit(local, "all", limit)
    assert fitting is not None
    assert fitting.limit_bytes("all") <= limit
    changed = differences(local, fitting)
    assert changed
    assert all(
        key in changed for key in differences(local, settings_that_fit(local, "all", limit + 1024 * MIB) or local)
    )


def test_settings_that_fit_pass_the_linter(local: Service, tmp_path: Path) -> None:
    fitting = settings_that_fit(local, "all", 2560 * MIB)
    assert fitting is not None
    config: dict[str, Any] = yaml.safe_load(LOCAL.read_text())
    application = config["applications"][0]
    blocks = {each["name"]: each.setdefault("user_config", {}) for each in application["deployments"]}
    blocks |= {"args": application["args"], "guard": config["guard"]}
    for name, value in differences(local, fitting).items():
        block, key = name.split(".")
        blocks[block][key] = value
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    assert read_service(path, cores=2).limit_bytes("all") <= 2560 * MIB


def test_nothing_fits_where_idle_processes_do_not(local: Service) -> None:
    assert settings_that_fit(local, "all", 1024 * MIB) is None


def test_the_largest_side_fits_and_a_larger_one_does_not(local: Service) -> None:
    limit = 8 * 1024 * MIB
    side = largest_side(local, "all", limit)
    assert local.with_max_side(side).limit_bytes("all") <= limit
    assert local.with_max_side(side + 4).limit_bytes("all") > limit


def test_the_command_reads_prod_yaml_unless_told_otherwise(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert animegan("plan") == 0
    said = capsys.readouterr().out
    assert "1024 x 1024 in fp16 on GPUs" in said
    assert "CUDA's context included" in said


def test_options_override_the_config(animegan: RunCommand, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max-side", 512, "--replicas", 3, "--device", "cpu", "--precision", "fp16", "--queue", 4]
    assert animegan("plan", "--json", *options) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["max_side"] == 512
    assert plan["parts"]["Stylizer"]["replicas"] == 3
    painting = MemoryModel("fp16").planned_bytes(Size(512, 512))
    assert plan["parts"]["Stylizer"]["painting"] == painting
    assert plan["parts"]["frames"]["frames"] == 3 * 512**2 * (4 + 3 * 8 + 4)


def test_settings_that_do_not_fit_end_with_a_sentence_and_a_status(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert animegan("plan", "--config", LOCAL, "--cores", 2, "--memory", "3GiB") == 1
    said = capsys.readouterr()
    assert "These settings do not fit: everything in one container needs" in said.err
    assert "These settings would fit in 3,072 MiB:\n" in said.out
    assert "  guard.max_form_bytes: 16777216\n" in said.out


def test_a_limit_that_nothing_fits_is_told_beside_the_least(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert animegan("plan", "--config", LOCAL, "--cores", 2, "--memory", "1GiB") == 1
    assert "No settings fit in 1,024 MiB. With max_side 1024 the least is" in capsys.readouterr().out


def test_json_says_what_fits(animegan: RunCommand, capsys: pytest.CaptureFixture[str]) -> None:
    assert animegan("plan", "--config", LOCAL, "--cores", 2, "--memory", "3GiB", "--json") == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["limit"]["fits"] is False
    assert plan["limit"]["settings_that_fit"]["guard.max_form_bytes"] == 16 * MIB
    assert plan["problems"][0].startswith("These settings do not fit")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--memory", "much"], "--memory: much is no size"),
        (["--replicas", "0"], "--replicas: must be at least 1, not 0"),
        (["--max-side", "20000"], "max_side: Input should be less than or equal to 16383"),
        (["--container", "JobRunner"], "--container: there is no JobRunner in this config"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert animegan("plan", *options) == 1
    assert sentence in capsys.readouterr().err


def test_a_wrong_config_is_refused_as_the_linter_does(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(LOCAL.read_text().replace("max_side", "max_sides"))
    assert animegan("plan", "--config", path) == 1
    assert "did you mean max_side?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("block", "replicas"),
    [
        ({}, 1),
        ({"num_replicas": 3}, 3),
        ({"num_replicas": "auto"}, 100),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 5}}, 5),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 7}}, 7),
    ],
)
def test_as_many_replicas_are_planned_as_there_may_be(block: dict[str, Any], replicas: int) -> None:
    assert as_deployment(block).replicas == replicas


def test_a_config_without_an_application_is_refused(
    animegan: RunCommand, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("applications: []")
    assert animegan("plan", "--config", path) == 1
    assert "applications: there is none" in capsys.readouterr().err
