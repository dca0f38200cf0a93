"""What a pristine root gets from this host."""

from __future__ import annotations

from pathlib import Path

from tests.vagrant.pristine import copy_named, network_settings

__all__: list[str] = []


def test_proxies_and_existing_certificates_are_passed(tmp_path: Path) -> None:
    bundle, directory = tmp_path / "ca.pem", tmp_path / "certificates"
    bundle.touch()
    directory.mkdir()
    proxies = {"HTTPS_PROXY": "http://host.invalid", "no_proxy": "*"}
    trusted = {"SSL_CERT_FILE": str(bundle), "SSL_CERT_DIR": str(directory)}
    missing = {"REQUESTS_CA_BUNDLE": str(tmp_path / "missing.pem"), "CURL_CA_BUNDLE": ""}
    settings, paths = network_settings(proxies | trusted | missing | {"PIP_CERT": "x", "A": "b"})
    assert settings == proxies | trusted
    assert paths == [bundle, directory]


def test_named_files_and_directories_are_copied_to_the_same_paths(tmp_path: Path) -> None:
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
