"""What a pristine root gets of this host, without making one."""

from __future__ import annotations

from pathlib import Path

from tests.vagrant.pristine import copy_named, network_settings

__all__: list[str] = []


def test_proxies_are_passed_and_nothing_else_of_the_environment() -> None:
    environment = {"HTTPS_PROXY": "http://host.invalid", "no_proxy": "*", "PIP_CERT": "x", "A": "b"}
    settings, paths = network_settings(environment)
    assert settings == {"HTTPS_PROXY": "http://host.invalid", "no_proxy": "*"}
    assert not paths


def test_certificates_that_the_environment_names_are_needed_if_they_are_there(
    tmp_path: Path,
) -> None:
    bundle, folder = tmp_path / "ca.pem", tmp_path / "certificates"
    bundle.touch()
    folder.mkdir()
    environment = {
        "SSL_CERT_FILE": str(bundle),
        "SSL_CERT_DIR": str(folder),
        "REQUESTS_CA_BUNDLE": str(tmp_path / "missing.pem"),
        "CURL_CA_BUNDLE": "",
    }
    settings, paths = network_settings(environment)
    assert settings == {"SSL_CERT_FILE": str(bundle), "SSL_CERT_DIR": str(folder)}
    assert paths == [bundle, folder]


def test_named_files_and_folders_are_copied_to_the_same_paths(tmp_path: Path) -> None:
    root = tmp_path / "root"
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "one.pem").write_text("one")
    (folder / "link.pem").symlink_to("one.pem")
    (folder / "dangling.pem").symlink_to("nothing")
    single = tmp_path / "pins.txt"
    single.write_text("pins")
    copy_named(root, [folder, single])
    inside = root / str(tmp_path).lstrip("/")
    assert (inside / "pins.txt").read_text() == "pins"
    assert (inside / "certificates/link.pem").read_text() == "one"
    assert not (inside / "certificates/dangling.pem").exists()
    copy_named(root, [folder])  # it is there already
