"""Runs that go on: with the bits of one that never stopped, or not at all."""

import os
import shutil

import pytest
import yaml

from ddpm_sa.errors import UserError
from tests.support.runs import (
    WATCHED,
    arguments,
    assert_same_run,
    metrics,
    picture_folder,
    run_here,
)
from training.checkpoint.run_folder import RunFolder


@pytest.mark.parametrize("stop", [3, 4])
def test_stopped_and_resumed_is_bit_for_bit_the_run_that_was_not(
    straight, pictures, tmp_path, stop
):
    run = tmp_path / "run"
    argv = arguments(pictures, run, sample_every=3, **WATCHED)
    run_here([*argv, "--steps", str(stop)])
    assert {row["step"] for row in metrics(run)[-2:]} == {stop}
    run_here([*argv, "--resume", "auto"])
    assert_same_run(straight, run, 6)


def test_muon_resumes_bit_for_bit(pictures, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run_here(arguments(pictures, straight, steps=4, optim__optimizer="muon"))
    run_here(arguments(pictures, stopped, steps=2, optim__optimizer="muon"))
    run_here(arguments(pictures, stopped, steps=4, optim__optimizer="muon", resume="auto"))
    assert_same_run(straight, stopped, 4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # inductor's own
def test_compiled_training_resumes_bit_for_bit(pictures, tmp_path):
    straight, run = tmp_path / "straight", tmp_path / "run"
    run_here(arguments(pictures, straight, compile="true"))
    argv = arguments(pictures, run, compile="true", sample_every=1)
    run_here([*argv, "--steps", "3"])
    run_here([*argv, "--resume", "auto"])
    assert_same_run(straight, run, 6)


def test_recorded_configuration_repeats_the_run(straight, tmp_path):
    config = straight / "config.yaml"
    run_here(["--config", str(config), "--output_dir", str(tmp_path / "again")])
    assert_same_run(straight, tmp_path / "again", 6)
    for name in ("step-00000003.png", "step-00000006.png"):
        one, other = (run / "samples" / name for run in (straight, tmp_path / "again"))
        assert one.read_bytes() == other.read_bytes()


def test_sample_grids_do_not_disturb_the_training(straight, pictures, tmp_path):
    for every in (0, 1):
        run = tmp_path / str(every)
        run_here(arguments(pictures, run, **WATCHED, sample_every=every))
        assert_same_run(straight, run, 6)


def test_run_stopped_twice_leaves_the_samples_of_one_that_was_not(straight, pictures, tmp_path):
    run = tmp_path / "run"
    argv = arguments(pictures, run, **WATCHED, sample_every=3, resume="auto")
    for _ in range(2):
        run_here([*argv, "--time_limit", "0"])  # over at once: one step is done
    assert not (run / "samples").exists()
    run_here(argv)
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == sorted(path.name for path in (straight / "samples").iterdir())
    for name in names:
        assert (run / "samples" / name).read_bytes() == (straight / "samples" / name).read_bytes()
    assert_same_run(straight, run, 6)


def test_damaged_checkpoint_is_passed_over_on_resume(pictures, tmp_path, capsys):
    run = tmp_path / "run"
    argv = arguments(pictures, run, save_every=2)
    run_here([*argv, "--steps", "4"])
    os.truncate(run / "checkpoints" / "step-00000004" / "ema.safetensors", 10)
    run_here([*argv, "--resume", "auto", "--steps", "5"])
    printed = capsys.readouterr().out
    assert "skipped     " in printed
    assert "step-00000004/ema.safetensors has 10 bytes" in printed
    assert "steps       2 to 5" in printed


def test_going_back_sets_later_checkpoints_aside(straight, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    point = run / "checkpoints" / "step-00000002"
    # The time limit is over at once: one step more than the point.
    changes = WATCHED | {"resume": point, "time_limit": 0, "keep_checkpoints": 9}
    run_here(arguments(pictures, run, **changes))
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert left == [
        *(f"step-{step:08d}" for step in (1, 2, 3)),
        *(f"step-{step:08d}.set-aside" for step in (3, 4, 5, 6)),
    ]
    assert (
        "step-00000006.set-aside, which is later than the step resumed from"
        in capsys.readouterr().out
    )


def test_going_back_twice_sets_aside_what_each_course_had(straight, pictures, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    point = run / "checkpoints" / "step-00000005"
    for _ in range(2):
        run_here(arguments(pictures, run, **WATCHED | {"resume": point, "keep_checkpoints": 9}))
    left = {path.name for path in (run / "checkpoints").glob("step-00000006*")}
    assert left == {f"step-00000006{end}" for end in ("", ".set-aside", ".set-aside-2")}


def test_restart_by_torchrun_goes_on_with_its_own_run_alone(
    straight, pictures, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    argv = arguments(pictures, run, **WATCHED, sample_every=3)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    run_here([*argv, "--steps", "3"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ValueError, match="already holds a run"):
        run_here(arguments(pictures, straight))
    run_here(argv)
    assert "restarted by torchrun" in capsys.readouterr().out
    assert_same_run(straight, run, 6)


def test_resume_under_other_settings_is_refused_before_anything_changes(straight, pictures):
    before = (straight / "config.yaml").read_text()
    changes = WATCHED | {"resume": "auto", "optim__lr": 0.5}
    with pytest.raises(ValueError, match=r"optim\.lr was 0\.001 and is now 0\.5"):
        run_here(arguments(pictures, straight, **changes))
    assert (straight / "config.yaml").read_text() == before


def test_resume_under_other_settings_is_said_where_asked_for(straight, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    changes = {"resume": "auto", "steps": 7, "optim__lr": 0.5, "override": "true"}
    run_here(arguments(pictures, run, **(WATCHED | changes)))
    assert "override    optim.lr was 0.001 and is now 0.5" in capsys.readouterr().out
    assert [row["lr"] for row in metrics(run) if "lr" in row][-1] == 0.5
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["optim"]["lr"], config["override"]) == (0.5, False)


def test_config_file_that_is_no_runs_is_not_replaced(pictures, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("theme: dark\n")
    with pytest.raises(ValueError, match=r"config\.yaml is not that of a run, and would be repl"):
        run_here(arguments(pictures, run, resume="auto"))
    assert (run / "config.yaml").read_text() == "theme: dark\n"
    assert os.listdir(run) == ["config.yaml"]


def test_checkpoint_of_another_run_that_removes_it_meanwhile_is_named(
    straight, pictures, tmp_path, monkeypatch
):
    """That run goes on, and keeps its newest checkpoints alone."""
    shutil.copytree(straight, tmp_path / "other")
    checkpoint = sorted((tmp_path / "other" / "checkpoints").iterdir())[-1]
    load = RunFolder._load

    def load_late(run, folder):
        shutil.rmtree(folder)
        return load(run, folder)

    monkeypatch.setattr(RunFolder, "_load", load_late)
    changes = WATCHED | {"resume": checkpoint, "steps": 7}
    with pytest.raises(UserError, match=rf"{checkpoint} was removed while it was read"):
        run_here(arguments(pictures, tmp_path / "new", **changes))


def test_resume_on_other_images_of_the_same_name_is_refused(tmp_path):
    folder, run = picture_folder(tmp_path / "pictures"), tmp_path / "run"
    run_here(arguments(folder, run, steps=2))
    (folder / "00.png").unlink()
    with pytest.raises(ValueError, match=r"images\.number was 12 and is now 11"):
        run_here(arguments(folder, run, resume="auto"))


def test_resume_past_the_last_step_is_refused(straight, pictures):
    changes = WATCHED | {"resume": "auto", "steps": 5}
    with pytest.raises(ValueError, match=r"steps=5, but .*step-00000006 is already at step 6"):
        run_here(arguments(pictures, straight, **changes))


def test_finished_run_resumed_says_so_and_changes_nothing(straight, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    changes = WATCHED | {"save_every": 1, "keep_checkpoints": 9, "resume": "auto"}
    run_here(arguments(pictures, run, **changes))
    assert "6 steps done" in capsys.readouterr().out
    assert_same_run(straight, run, 6)


def test_existing_run_needs_resume(straight, pictures):
    before = (straight / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="already holds a run; add --resume auto"):
        run_here(arguments(pictures, straight))
    assert (straight / "metrics.jsonl").read_text() == before
