"""docs/resuming.md says what is so."""

import re

from tests import test_replacement
from tests.files import test_folder_lock
from tests.support.runs import ROOT
from tests.training import test_loop, test_nonfinite
from tests.training.checkpoint import (
    test_faults,
    test_kills,
    test_locks,
    test_resume,
    test_state,
)
from tests.training.distributed import test_interrupt, test_launchers
from training.saved_config import MAY_CHANGE_ON_RESUME

PAGE = (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8")

# The first words of each row, and the tests that hold it.
HELD_BY = {
    "SIGTERM": (
        test_interrupt.test_signal_ends_the_run_so_that_it_goes_on_bit_for_bit,
        test_interrupt.test_closed_terminal_ends_the_run_so_that_it_goes_on_bit_for_bit,
        test_launchers.test_signal_to_the_whole_group_ends_the_run_well,
        test_launchers.test_end_of_torchrun_ends_the_run_well,
    ),
    "`accelerate launch` or torchrun": (
        test_launchers.test_end_of_accelerate_launch_ends_the_run_well,
        test_launchers.test_end_of_torchrun_ends_the_run_well,
    ),
    "killed while `model/`": (
        test_replacement.test_model_killed_at_any_step_of_its_replacement_is_whole,
    ),
    "another run is started": (
        test_locks.test_of_two_runs_on_one_folder_the_second_is_refused,
        test_locks.test_of_two_runs_on_one_folder_the_second_is_refused_each_time,
        test_locks.test_run_waits_for_the_end_of_an_earlier_one,
    ),
    "the process that held": (
        test_locks.test_folder_of_a_killed_run_is_free_at_once,
        test_folder_lock.test_silent_lock_of_another_machine_is_taken_over,
        test_folder_lock.test_without_locks_the_heartbeat_decides,
    ),
    "`--time_limit`": (test_resume.test_run_stopped_twice_leaves_the_samples_of_one_that_was_not,),
    "SIGKILL": (
        test_kills.test_killed_three_times_is_the_run_that_was_not,
        test_kills.test_killed_twenty_times_is_the_run_that_was_not,
    ),
    "a worker dies": (
        test_launchers.test_worker_that_is_killed_is_restarted_and_ends_with_the_same_weights,
        test_launchers.test_restarts_do_not_take_over_a_run_that_was_refused,
    ),
    "a checkpoint is truncated": (
        test_state.test_damaged_checkpoint_is_named_and_passed_over,
        test_state.test_a_damaged_checkpoint_does_not_count_towards_those_kept,
        test_resume.test_damaged_checkpoint_is_passed_over_on_resume,
    ),
    "the disk is full": (
        test_faults.test_full_disk_ends_the_run_and_leaves_the_last_checkpoint,
        test_faults.test_disk_that_fills_between_saves_ends_the_run_too,
        test_faults.test_disk_that_becomes_read_only_ends_the_run,
        test_faults.test_quota_ends_the_run,
    ),
    "the model folder": (test_faults.test_model_that_cannot_be_written_is_written_by_the_resume,),
    "the loss or the gradient": (
        test_loop.test_a_value_that_is_not_finite_stops_before_the_weights,
        test_loop.test_an_update_that_is_not_finite_is_left_out_where_asked,
        test_nonfinite.test_updates_that_are_not_finite_are_left_out_and_counted,
        test_nonfinite.test_all_processes_leave_out_the_update_that_one_found_not_finite,
    ),
    "machines": (test_faults.test_hosts_that_share_no_disk_are_told_so,),
    "other settings": (
        test_resume.test_resume_under_other_settings_is_refused_before_anything_changes,
        test_resume.test_resume_under_other_settings_is_said_where_asked_for,
        test_resume.test_resume_on_other_images_of_the_same_name_is_refused,
    ),
    "`--resume CHECKPOINT`": (test_resume.test_going_back_sets_later_checkpoints_aside,),
}


def test_every_fault_in_the_table_is_held_by_tests():
    rows = [line.split("|")[1].strip() for line in PAGE.splitlines() if line.startswith("| ")]
    faults = rows[1:]
    assert len(faults) > 10
    for fault in faults:
        assert [name for name in HELD_BY if fault.startswith(name)], fault
    for name in HELD_BY:
        assert [fault for fault in faults if fault.startswith(name)], name


def test_settings_that_may_change_are_those_listed():
    listed = PAGE.partition("A resumed run may change")[2].partition("\n\n")[2]
    listed = listed.partition("\n\n")[0]
    assert {*re.findall(r"`([^`]+)`", listed)} == MAY_CHANGE_ON_RESUME
