"""Make, extend and refresh a repository for `edgesan install https://HOST/FOLDER`, by python-tuf.

    python publish_repository.py FOLDER --key release --online online --add san.onnx
    python publish_repository.py FOLDER --online online                   # every day: else it expires
    python publish_repository.py FOLDER --key release --new-key next      # other keys sign the root from now on

FOLDER is what an ordinary web server serves. The keys are files of `edgesan keys new`: the release key signs the root
and what is to be installed, and is kept away from the server; the online key says every day that nothing newer exists.
`--add` takes a model and the signature beside it, and configurations (.toml).
"""

import argparse
import datetime
import shutil
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

MODEL = "model.onnx"


def signer(path: Path) -> CryptoSigner:
    """Return what signs with a private key."""
    return CryptoSigner(load_ssh_private_key(path.read_bytes(), None))


class Repository:
    """The metadata of a folder: read, changed, signed and written again."""

    def __init__(self, folder: Path) -> None:
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        for place in (self.metadata, self.targets):
            place.mkdir(parents=True, exist_ok=True)

    def newest(self, role: str) -> Metadata[Any] | None:
        """Return the newest metadata of a role; None if there is none."""
        files = [*self.metadata.glob(f"*.{role}.json"), *self.metadata.glob(f"{role}.json")]
        found = [Metadata.from_file(str(file)) for file in files]
        return max(found, key=lambda metadata: metadata.signed.version, default=None)

    def write(self, metadata: Metadata[Any], signers: list[CryptoSigner], days: float) -> None:
        """Give metadata the next version, let it be valid for so many days, sign it, and write it."""
        signed = metadata.signed
        signed.expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        metadata.signatures.clear()
        for each in signers:
            metadata.sign(each, append=True)
        self.check(metadata)
        version = "" if signed.type == Timestamp.type else f"{signed.version}."
        part = self.metadata / f".{signed.type}.part"
        metadata.to_file(str(part))
        part.replace(self.metadata / f"{version}{signed.type}.json")  # a client sees the old file, or the new one

    def check(self, metadata: Metadata[Any]) -> None:
        """Refuse to write what no client would take: the root of before must trust these signatures."""
        root = self.newest(Root.type) or metadata
        try:
            root.signed.verify_delegate(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError as error:
            raise SystemExit(f"error: the repository's root names other keys: {error}; nothing was written") from error

    def publish_root(
        self, release: list[CryptoSigner], online: CryptoSigner | None, before: list[CryptoSigner]
    ) -> None:
        """Write a root that trusts these keys, signed by them and by those of before."""
        old = self.newest(Root.type)
        root = Root(version=old.signed.version + 1 if old else 1, consistent_snapshot=True)
        if old and online is None:
            for role in (Snapshot.type, Timestamp.type):
                for number in old.signed.roles[role].keyids:
                    root.add_key(old.signed.keys[number], role)
        for role, keys in {Root.type: release, Targets.type: release}.items():
            for each in keys:
                root.add_key(each.public_key, role)
        if online:
            for role in (Snapshot.type, Timestamp.type):
                root.add_key(online.public_key, role)
        unique = {each.public_key.keyid: each for each in (*before, *release)}
        self.write(Metadata(root), list(unique.values()), days=365)

    def publish_targets(self, files: list[Path], release: CryptoSigner, days: float) -> None:
        """Add files to what may be installed. A model is always named model.onnx, and brings its signature."""
        old = self.newest(Targets.type)
        targets = old.signed if old else Targets(version=1)
        for file in files:
            pairs = [(file, file.name)]
            if file.suffix == ".onnx":
                pairs = [(file, MODEL), (file.with_name(f"{file.name}.sig"), f"{MODEL}.sig")]
            for source, name in pairs:
                target = TargetFile.from_file(name, str(source))
                targets.targets[name] = target
                shutil.copyfile(source, self.targets / f"{target.hashes['sha256']}.{name}")
        targets.version += 1 if old else 0
        self.write(Metadata(targets), [release], days)

    def refresh(self, online: CryptoSigner, days: float) -> None:
        """Say what the newest targets are, for so many days."""
        targets, old, last = (self.newest(role) for role in (Targets.type, Snapshot.type, Timestamp.type))
        assert targets
        version = old.signed.version + 1 if old else 1
        snapshot = Snapshot(version=version, meta={"targets.json": MetaFile(targets.signed.version)})
        self.write(Metadata(snapshot), [online], days)
        stamp = Timestamp(version=last.signed.version + 1 if last else 1, snapshot_meta=MetaFile(version))
        self.write(Metadata(stamp), [online], days)


def publish(options: argparse.Namespace) -> None:
    """Do what the options say."""
    repository = Repository(options.folder)
    release = signer(options.key) if options.key else None
    online = signer(options.online) if options.online else None
    if release and repository.newest(Root.type) is None:
        if online is None:
            raise SystemExit("error: the first root names the online key, too: --online FILE")
        repository.publish_root([release], online, [])
    if options.new_key and release:
        following = signer(options.new_key)
        repository.publish_root([following], online, [release])
        release = following
        repository.publish_targets([], release, options.days_release)
    if options.add and release:
        repository.publish_targets(options.add, release, options.days_release)
    if online:
        repository.refresh(online, options.days)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the release key, private")
    parser.add_argument("--online", type=Path, metavar="FILE", help="the online key, private")
    parser.add_argument("--new-key", type=Path, metavar="FILE", help="the release key from now on, private")
    parser.add_argument("--add", type=Path, metavar="FILE", nargs="+", help="models and configurations")
    parser.add_argument("--days", type=float, default=7, metavar="N", help="for which a refresh lasts (default: 7)")
    parser.add_argument("--days-release", type=float, default=180, metavar="N", help="for which targets last (180)")
    publish(parser.parse_args())


if __name__ == "__main__":
    main()
