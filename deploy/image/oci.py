"""OCI image archives, written without a registry or an engine; the same input gives the same bytes."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import time

MEDIA = "application/vnd.oci.image."


class Layer:
    """The files of an image: all owned by root, sorted by name, none with a time of its own."""

    def __init__(self, epoch=0):
        self.epoch = epoch
        self.entries = {}

    def file(self, name, data, mode=0o644):
        self._add(name, tarfile.REGTYPE, mode, data=data)

    def copy(self, name, source):
        with open(source, "rb") as file:
            self.file(name, file.read(), 0o755 if os.access(source, os.X_OK) else 0o644)

    def link(self, name, target):
        self._add(name, tarfile.SYMTYPE, 0o777, target=target)

    def folder(self, name, mode=0o755):
        self._add(name, tarfile.DIRTYPE, mode)

    def _add(self, name, kind, mode, data=b"", target=""):
        name = name.strip("/")
        parent = os.path.dirname(name)
        if parent and parent not in self.entries:
            self.folder(parent)
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = kind, mode, self.epoch
        info.size, info.linkname = len(data), target
        self.entries[name] = (info, data)

    def tar(self):
        return pack(self.entries[name] for name in sorted(self.entries))


def pack(entries):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write(path, name, layer, architecture, config):
    """Writes an image of one layer, called `name`, to `path`, in both forms that engines read: OCI's image
    layout, and `manifest.json` for engines that know only that. Returns the manifest's digest."""
    blobs = {}

    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": MEDIA + kind, "digest": f"sha256:{digest}", "size": len(data)}

    def dump(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    tar = layer.tar()
    packed = blob("layer.v1.tar+gzip", gzip.compress(tar, 9, mtime=0))
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(layer.epoch))
    platform = {"architecture": architecture, "os": "linux"}
    description = blob("config.v1+json", dump(platform | {
        "created": created,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}"]},
        "history": [{"created": created, "created_by": "deploy/image/build"}],
    }))
    manifest = blob("manifest.v1+json", dump({
        "schemaVersion": 2,
        "mediaType": MEDIA + "manifest.v1+json",
        "config": description,
        "layers": [packed],
    }))
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    files = blobs | {
        "oci-layout": dump({"imageLayoutVersion": "1.0.0"}),
        "index.json": dump({
            "schemaVersion": 2,
            "mediaType": MEDIA + "index.v1+json",
            "manifests": [manifest | {"platform": platform, "annotations": names}],
        }),
        "manifest.json": dump([{
            "Config": blob_path(description),
            "RepoTags": [name],
            "Layers": [blob_path(packed)],
        }]),
    }
    archive = Layer(layer.epoch)
    for file, data in files.items():
        archive.file(file, data)
    with open(f"{path}.part", "wb") as out:
        out.write(archive.tar())
    os.replace(f"{path}.part", path)
    return manifest["digest"]


def blob_path(descriptor):
    return "blobs/" + descriptor["digest"].replace(":", "/")


def unpack(path, folder):
    """Unpacks an archive that `write` made into a root folder; returns the image's configuration."""
    with tarfile.open(path) as archive:

        def read(name):
            return archive.extractfile(name).read()

        index = json.loads(read("index.json"))
        manifest = json.loads(read(blob_path(index["manifests"][0])))
        for descriptor in manifest["layers"]:
            with tarfile.open(fileobj=io.BytesIO(read(blob_path(descriptor)))) as layer:
                layer.extractall(folder)
        return json.loads(read(blob_path(manifest["config"])))
