"""Ask a video device of Linux what it is: V4L2, linux/videodev2.h."""

import fcntl
import grp
import os
import pwd
import struct
from pathlib import Path
from typing import Final, NamedTuple

VIDIOC_QUERYCAP: Final = 0x80685600
CAPABILITY: Final = struct.Struct("=16s32s32sIII12x")  # driver, card, bus, version, capabilities, device_caps
CAPTURE: Final = 0x00000001 | 0x00001000  # VIDEO_CAPTURE, VIDEO_CAPTURE_MPLANE
OUTPUT: Final = 0x00000002  # VIDEO_OUTPUT
LOOPBACK: Final = "v4l2 loopback"  # the driver of v4l2loopback: what is written to its devices, other programs read
DEVICE_CAPS: Final = 0x80000000


class Device(NamedTuple):
    """What a node says: its driver, its name for people, and what this node can do (CAPTURE, OUTPUT)."""

    driver: str
    card: str
    capabilities: int


def query(node: Path) -> Device:
    """Ask a device node. Raises OSError: it is not there, may not be opened, or is no video device."""
    file = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return parse(fcntl.ioctl(file, VIDIOC_QUERYCAP, bytes(CAPABILITY.size)))
    finally:
        os.close(file)


def is_virtual(node: Path) -> bool:
    """Return whether a device node shows what is written to it; False also where it cannot be asked."""
    try:
        return query(node).driver == LOOPBACK
    except OSError:
        return False


def parse(answer: bytes) -> Device:
    """Return the device that a VIDIOC_QUERYCAP answer (104 bytes) describes."""
    driver, card, _, _, of_all_nodes, of_this_node = CAPABILITY.unpack(answer)
    driver, card = (text.split(b"\0")[0].decode(errors="replace") for text in (driver, card))
    return Device(driver, card, of_this_node if of_all_nodes & DEVICE_CAPS else of_all_nodes)


def permission_cure(node: Path) -> str:
    """Return what to do where a device node exists but may not be opened."""
    status = node.stat()
    try:
        group, user = grp.getgrgid(status.st_gid), pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"run edgesan as a user of the group with the number {status.st_gid}"
    if status.st_gid == 0 or status.st_mode & 0o060 != 0o060:
        return "only root may open it; a udev rule must give it to the group video"
    if user in group.gr_mem:
        return f"you joined the group {group.gr_name} after you logged in: log in again"
    return f"sudo usermod -aG {group.gr_name} {user}, then log in again"
