"""What an ELF file says of itself: its architecture, its loader, and the libraries it needs."""

import os
import struct

# e_machine to the image's architecture and Debian's name for its library folders.
MACHINES = {62: ("amd64", "x86_64-linux-gnu"), 183: ("arm64", "aarch64-linux-gnu")}
LOAD, DYNAMIC, INTERPRETER = 1, 2, 3
NEEDED, STRING_TABLE = 1, 5


class Elf:
    """The header, loader and needed libraries of a 64-bit little-endian file."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = file.read()
        if self.data[:6] != b"\x7fELF\x02\x01":
            raise SystemExit(f"{path}: not a 64-bit little-endian ELF file")
        machine, = struct.unpack_from("<H", self.data, 18)
        if machine not in MACHINES:
            raise SystemExit(f"{path}: machine {machine}; known are {sorted(MACHINES)}")
        self.architecture, self.triplet = MACHINES[machine]
        self.segments = self._segments()
        self.loader = next((self._text(offset) for kind, offset, _, _ in self.segments if kind == INTERPRETER), None)
        self.needed = self._needed()

    def _segments(self):
        start, = struct.unpack_from("<Q", self.data, 32)
        size, count = struct.unpack_from("<HH", self.data, 54)
        headers = (struct.unpack_from("<IIQQQQ", self.data, start + i * size) for i in range(count))
        return [(kind, offset, address, length) for kind, _, offset, address, _, length in headers]

    def _needed(self):
        names, strings = [], 0
        for kind, offset, _, length in self.segments:
            if kind != DYNAMIC:
                continue
            for tag, value in struct.iter_unpack("<QQ", self.data[offset:offset + length]):
                if tag == NEEDED:
                    names.append(value)
                elif tag == STRING_TABLE:
                    strings = self._offset(value)
        return [self._text(strings + name) for name in names]

    def _offset(self, address):
        for kind, offset, start, length in self.segments:
            if kind == LOAD and start <= address < start + length:
                return address - start + offset
        raise SystemExit(f"no segment has the address {address:#x}")

    def _text(self, offset):
        return self.data[offset:self.data.index(b"\0", offset)].decode()


def closure(program, extra, root):
    """Where below `root` the loader finds what `program` needs, together with the libraries `extra`: a map
    from the paths in the image to files. Nothing is run, so that `root` may be another machine's."""
    elf = Elf(program)
    if elf.loader is None:
        raise SystemExit(f"{program} is linked statically: it cannot open NVIDIA's library")
    found = {elf.loader: below(root, elf.loader)}
    if not os.path.isfile(found[elf.loader]):
        raise SystemExit(f"{program} wants the loader {elf.loader}, which is not below {root}")
    wanted = elf.needed + extra
    while wanted:
        name = wanted.pop()
        if any(os.path.basename(path) == name for path in found):
            continue
        folders = [f"/lib/{elf.triplet}", f"/usr/lib/{elf.triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
        path = next((f"{folder}/{name}" for folder in folders if os.path.isfile(below(root, f"{folder}/{name}"))), None)
        if path is None:
            raise SystemExit(f"{name} is in none of {', '.join(folders)} below {root}")
        library = Elf(below(root, path))
        if library.architecture != elf.architecture:
            raise SystemExit(f"{below(root, path)} is for {library.architecture}, not {elf.architecture}")
        found[path] = below(root, path)
        wanted += library.needed
    return elf.architecture, found


def below(root, path):
    return os.path.join(root, path.lstrip("/"))
