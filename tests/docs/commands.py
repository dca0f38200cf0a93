"""Where each command of the documentation is run: each is in exactly one of these tables."""

from __future__ import annotations

__all__ = ["ELSEWHERE", "NOT_RUN", "OFFLINE", "ON_A_NODE"]

OFFLINE: dict[str, str] = {
    "(umask 077; openssl rand -hex 32 > key)": "",
    "./run campaign plan inequality4": "18,700 missions",
    "trivisor explain TV0301": "What to do",
    "trivisor model advise --rm 0.95 --rv 0.999 --lying 0.2": "recommended: 3-of-5",
    "trivisor model bound --design 1ofn --r 0.98 --rv 0.999 --rm 0.5": "6",
    "trivisor model bound --design 1ofn --rm 0.1 --rv 0.3": "4",
    "trivisor model bound --design 2of3 --rm 0.9": "0.9259259",
    "trivisor model bound --design 2of3 --rv 0.98": "0.521317",
    "trivisor model bound --design moved --rf 0.75 --rm 0.75 --n 6": "0.99323006",
    "trivisor model export mef --design 2of3 --rm 0.9 --rv 0.98 --beta 0.1": "opsa-mef",
    "trivisor model figure 7 --results examples/measured.json --out figure7.svg": "figure7.svg",
    "trivisor model reliability --design 2of3 --rm 0.9 --rv 0.999": "0.97",
    "trivisor model repairable --design 2of3 --mttf 720 --mttr 0.02 --mission 8760": "availability",
    "trivisor service check examples/counter.py": "no difference",
    "trivisor simulate --seed 42 --trace": "release",
    "trivisor simulate --seed 77005182 --trace": "release",
}
"""Run without a node, each in a directory of its own, with a text that its output contains."""

ON_A_NODE: tuple[str, ...] = (
    "trivisor up --allow-faults",
    "curl -i -X PUT --data blue http://127.0.0.1:8080/kv/colour",
    "trivisor status",
    "trivisor inject crash g2",
    "trivisor request GET /kv/colour",
    "trivisor heal g2",
    "trivisor inject corrupt-reply g3 --for 2",
    "trivisor dashboard",
    "trivisor down",
)
"""Run in this order on one node of three guests."""

_CAMPAIGN = "tests/faultinject/campaign/test_campaign_command.py"
_PACKAGE = "tests/deploy/package/test_life_cycle.py"
_DEPLOY = "tests/deploy/remote/test_deployment.py"
_LIBVIRTD = "tests/test_trivisor_libvirtd.py::test_guests_are_listed_with_title_and_description"
_THREE = f"{_PACKAGE}::test_three_commands_of_the_readme_lead_to_a_voted_request_under_systemd"
_BACKUP = f"{_PACKAGE}::test_stop_leaves_no_process_and_a_restored_backup_has_every_write"
_SECURE = (
    "tests/deploy/supervisor/test_secure_node.py::test_node_with_tls_and_tokens_serves_who_has_one"
)
_METRICS = "tests/deploy/monitoring/test_supervisor_metrics.py"
_ALERTS = "tests/integration/test_alerts.py::test_every_alert_fires"
_MONITOR = "tests/deploy/monitor/test_monitor_command.py"
_REPLAY = "tests/deploy/replay/test_replay_command.py"
_PATCH = "tests/test_trivisor_patch.py"
_EXPERIMENT = "tests/faultinject/experiment/test_experiment.py"
_REJUVENATE = "tests/test_trivisor_rejuvenate.py"
_WHEEL = "tests/integration/test_installed_wheel.py"

ELSEWHERE: dict[str, str] = {
    "./run campaign agree softerrors docs/results/softerrors":
        f"{_CAMPAIGN}::test_agree_compares_two_runs_of_one_plan",
    "./run campaign export quick --out rows.csv":
        f"{_CAMPAIGN}::test_run_status_resume_export_replay",
    "./run campaign plan quick": f"{_CAMPAIGN}::test_plan_shows_missions_and_duration",
    "./run campaign replay quick 17": f"{_CAMPAIGN}::test_run_status_resume_export_replay",
    "./run campaign resume quick": f"{_CAMPAIGN}::test_run_status_resume_export_replay",
    "./run campaign run quick --out quick":
        "tests/vagrant/test_provision.py::test_demo_and_campaign_run_on_a_pristine_machine",
    "./run campaign status quick": f"{_CAMPAIGN}::test_run_status_resume_export_replay",
    "./run demo": "tests/faultinject/test_demo.py::test_demo_holds_all_its_claims",
    "./run package": _THREE,
    "cd vagrant && vagrant up":
        "tests/vagrant/test_vagrant_up.py::test_vagrant_up_runs_demo_and_campaign",
    "python3 -m venv ~/trivisor": f"{_WHEEL}::test_wheel_calculates_and_checks_the_host",
    "curl --unix-socket DIR/supervisor.sock http://node/metrics":
        f"{_METRICS}::test_metrics_follow_guests_repairs_and_the_voter",
    "prometheus --config.file monitoring/prometheus.yml": _ALERTS,
    "sudo apt install ./dist/trivisor_*.deb":
        _THREE,
    "sudo rm -r /var/lib/trivisor /var/lib/trivisor-voter": _BACKUP,
    "sudo systemctl start trivisor": _BACKUP,
    "sudo systemctl stop trivisor": _BACKUP,
    "sudo tar -C / -czf trivisor-backup.tgz var/lib/trivisor var/lib/trivisor-voter etc/trivisor":
        _BACKUP,
    "sudo tar -C / -xzf trivisor-backup.tgz": _BACKUP,
    "trivisor deploy admin@192.0.2.7 --dry-run":
        f"{_DEPLOY}::test_first_deploy_votes_second_changes_nothing_and_remove_keeps_the_settings",
    "trivisor deploy admin@192.0.2.7 --remove":
        f"{_DEPLOY}::test_first_deploy_votes_second_changes_nothing_and_remove_keeps_the_settings",
    "trivisor deploy admin@192.0.2.7 --vote 2/3 --http 0.0.0.0:8080":
        f"{_DEPLOY}::test_first_deploy_votes_second_changes_nothing_and_remove_keeps_the_settings",
    "trivisor doctor --connect qemu:///system":
        "tests/test_trivisor.py::test_doctor_reports_as_json_and_by_its_exit_code",
    "trivisor function --key key --listen /run/f.sock --keep &":
        "tests/deploy/test_authorizer.py::test_keep_ends_after_a_signal",
    "trivisor monitoring --out monitoring":
        "tests/deploy/monitoring/test_files.py"
        "::test_command_names_the_addresses_of_the_node_that_runs",
    "trivisor patch start --service fixed.py --after 500":
        f"{_PATCH}::test_fix_is_promoted_under_load",
    "trivisor patch status": f"{_PATCH}::test_fix_is_promoted_under_load",
    "trivisor patch diff": f"{_PATCH}::test_fix_is_promoted_under_load",
    "trivisor patch promote": f"{_PATCH}::test_fix_is_promoted_under_load",
    "trivisor patch rules expected.toml":
        f"{_PATCH}::test_fix_is_promoted_under_load",
    "trivisor patch rules expected.toml --use":
        f"{_PATCH}::test_fix_is_promoted_under_load",
    "trivisor rejuvenate --all":
        f"{_REJUVENATE}::test_all_guests_are_replaced_under_load_and_no_client_notices",
    "trivisor rejuvenate g2":
        f"{_REJUVENATE}::test_guest_boots_with_a_share_of_the_processor_and_takes_a_place",
    "trivisor up --rejuvenate-every 3600":
        "tests/deploy/supervisor/test_rejuvenation.py"
        "::test_node_replaces_the_guest_that_has_run_longest_in_turn",
    "trivisor monitor rules.toml --dry-run":
        f"{_MONITOR}::test_dry_run_shows_what_rules_match_in_the_journal",
    "trivisor monitor rules.toml --keep":
        f"{_MONITOR}::test_on_real_guests_attack_is_refused_blocked_and_reverted",
    "trivisor up --function unix:/path/of/the/node/monitor.sock":
        f"{_MONITOR}::test_on_real_guests_attack_is_refused_blocked_and_reverted",
    "trivisor replay": f"{_REPLAY}::test_a_difference_is_shown_and_is_a_failure",
    "trivisor replay --from 120000 --until 150000":
        f"{_REPLAY}::test_a_range_without_a_difference_succeeds_and_json_has_all",
    "trivisor replay --list": f"{_REPLAY}::test_list_shows_where_a_replay_can_start",
    "trivisor replay --predicate exploited.py":
        f"{_REPLAY}::test_a_match_is_a_failure_that_names_the_caller",
    "trivisor up --keep-history 1024": f"{_REPLAY}::test_list_shows_where_a_replay_can_start",
    "trivisor experiment list": f"{_EXPERIMENT}::test_the_list_shows_every_experiment_and_its_arms",
    "trivisor experiment run replay --share 0.05 --out replay-1":
        f"{_EXPERIMENT}::test_the_command_runs_the_trials_that_it_was_given_and_resumes",
    "trivisor experiment resume replay-1":
        f"{_EXPERIMENT}::test_the_command_runs_the_trials_that_it_was_given_and_resumes",
    "trivisor experiment report replay-1":
        f"{_EXPERIMENT}::test_the_command_reports_what_was_run",
    "trivisor trace 204": _ALERTS,
    "trivisor model figure all --out docs/figures":
        "tests/faultinject/calculator/test_figures.py::test_figures_are_drawn_with_and_without_points",
    "trivisor request PUT /kv/colour --data blue --key key --to unix:/run/native.sock":
        "tests/deploy/test_authorizer.py::test_voter_with_a_function_rejects_unsigned_requests",
    "trivisor simulate --defects":
        "tests/simulation/test_defects.py::test_planted_defect_breaks_an_expected_promise",
    "trivisor simulate --known":
        "tests/simulation/test_command.py::test_known_seeds_hold_and_are_run_alone_or_with_others",
    "trivisor simulate --nightly":
        "tests/simulation/test_command.py::test_nightly_ends_at_a_signal_and_logs_its_totals",
    "trivisor simulate": "tests/simulation/test_command.py::test_fresh_seeds_are_new_each_time",
    'curl --cacert ca.crt -H "Authorization: Bearer $(cat billing.token)" https://HOST:8443/kv/colour':
        _SECURE,
    "trivisor token add billing --tokens tokens > billing.token": _SECURE,
    "trivisor up --http 0.0.0.0:8443 --tls-certificate server.crt --tls-key server.key "
    "--tokens tokens": _SECURE,
    "trivisor up": f"{_WHEEL}::test_wheel_starts_and_stops_a_node",
    "trivisor up --connect qemu:///system": _LIBVIRTD,
    "trivisor up --service examples/counter.py":
        "tests/docs/test_tutorial.py::test_tutorial_leads_to_a_service_that_is_voted_and_repaired",
    "virsh -c qemu:///system list --title": _LIBVIRTD,
    "~/trivisor/bin/pip install dist/trivisor-*.whl":
        f"{_WHEEL}::test_wheel_calculates_and_checks_the_host",
    "~/trivisor/bin/trivisor doctor": f"{_WHEEL}::test_wheel_calculates_and_checks_the_host",
}  # fmt: skip
"""Run by another test, with other directories, addresses or numbers."""

NOT_RUN: dict[str, str] = {
    './run campaign moved c1 c2 --rf 0.75 --rm 0.75 --points points.json':
        "needs two campaigns of an hour; `./run pictures` runs it on the kept ones",
    "./run campaign run commoncause --out commoncause --seed 1": "25 minutes",
    "./run campaign run inequality4 --out inequality4 --seed 1": "3 hours",
    "./run campaign run moved-guest --out c1": "an hour",
    "./run campaign run moved-host --out c2": "an hour",
    "./run campaign run oneofn --out oneofn --seed 1": "2.5 hours",
    "./run campaign run softerrors --out softerrors --seed 1": "80 minutes",
    "./run pictures": "remakes files of the repository",
    "./run test": "is what runs this test",
    'export PATH="$PWD/.venv/bin:$PATH"': "the tests have their own path",
    "mkdir ~/shopping && cd ~/shopping": "the tests have their own directory",
    "ssh -L 8023:127.0.0.1:8023 HOST": "needs another host",
    "sudo apt-get install --no-install-recommends libvirt-dev pkg-config gcc libc6-dev "
    "python3-dev": "changes the host",
    "sudo apt-get install --no-install-recommends qemu-system-x86 qemu-utils "
    "libvirt-daemon-driver-qemu mmdebstrap uidmap python3-venv": "changes the host",
    "sudo apt-get install libvirt-daemon-system libvirt-clients": "changes the host",
    "sudo usermod -aG libvirt,libvirt-qemu,kvm $USER": "changes the host",
    "trivisor model figure 6b --results points.json --out figure6b.svg":
        "needs the points of `campaign moved`",
    "trivisor simulate --fresh 20000": "an hour",
}  # fmt: skip
"""Not run, with the reason.  `tests/project/test_references.py` checks that their options exist."""
