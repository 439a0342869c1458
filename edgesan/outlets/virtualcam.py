"""Show the stream as a camera of this machine: `--out v4l2:/dev/videoN`, for programs that know only cameras.

The device is one of v4l2loopback, a module of the kernel: what is written to it, other programs read as a camera. No
other kind is opened, and so no camera that sees something. pyvirtualcam writes to it; it is under the GPL, version 2,
and is installed by those who want it. The pictures are the JPEGs that all viewers get.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgesan import v4l2
from edgesan.config import Config
from edgesan.errors import ConfigError
from edgesan.outlets.channel import JPEG, Jpeg
from edgesan.outlets.link import Attempts, Link, Lost
from edgesan.targets import Target

if TYPE_CHECKING:  # numpy must not be loaded before isolation
    from edgesan.frames import Pixels

NOMINAL_FPS: Final = 30.0  # that programs are told; pictures come when the camera gives them
LOAD: Final = (
    "sudo apt install v4l2loopback-dkms, then sudo modprobe v4l2loopback video_nr=10 card_label=edgesan"
    " exclusive_caps=1, and write v4l2:/dev/video10"
)


def unusable(device: Path) -> tuple[str, str]:
    """Return why a device is no virtual camera that can be written to, and the cure; two empty texts if it is one."""
    try:
        found = v4l2.query(device)
    except FileNotFoundError:
        return "there is no such device", LOAD
    except PermissionError:
        return "you may not open it", v4l2.permission_cure(device)
    except OSError as error:
        return f"it is no video device ({error.strerror})", LOAD
    return refused(found)


def refused(found: v4l2.Device) -> tuple[str, str]:
    """Return why a video device is no virtual camera that can be written to, and the cure, as `unusable`."""
    if found.driver != v4l2.LOOPBACK:
        return f"it is {found.card} ({found.driver}), and no virtual camera", LOAD
    if not found.capabilities & v4l2.OUTPUT:
        return "another program shows its pictures there", "end that program, or load v4l2loopback with more devices"
    return "", ""


def prepare(config: Config, target: Target) -> float:
    """Check the device, and return the frame rate that programs are told.

    Raises:
        ConfigError: it is not there, or is another kind of device.
    """
    assert target.device is not None
    why, cure = unusable(target.device)
    if why:
        raise ConfigError(f"{target.name}: {why}; {cure}")
    return config.fps or NOMINAL_FPS


async def run(link: Link, target: Target, prepared: float) -> None:
    """Show pictures until the transmit process ends."""
    attempts = Attempts(link, target.name)

    async def attempt() -> None:
        link.want(JPEG)
        picture = await newest(link)
        camera = open_camera(target, picture, prepared)
        try:
            attempts.connected()
            while picture.shape[:2] == (camera.height, camera.width):
                camera.send(picture)
                attempts.sent(picture.nbytes)
                picture = await newest(link)
        finally:
            camera.close()

    await attempts.run(attempt)


async def newest(link: Link) -> "Pixels":
    """Return the next picture without an odd last row and column, which YUV 4:2:0 has none of.

    Raises:
        Closed: the transmit process has ended.
        Lost: what came is no picture.
    """
    import cv2
    import numpy as np

    while not isinstance(message := await link.receive(), Jpeg):
        pass
    picture = cv2.imdecode(np.frombuffer(message.picture, np.uint8), cv2.IMREAD_COLOR)
    if picture is None or min(picture.shape[:2]) < 2:
        raise Lost("what came is no picture of 2x2 pixels or more")
    height, width = (side // 2 * 2 for side in picture.shape[:2])
    return np.asarray(picture[:height, :width], np.uint8)


def open_camera(target: Target, picture: "Pixels", fps: float) -> Any:
    """Return the device, open for pictures like this one.

    Raises:
        Lost: it cannot be opened, or not for this size.
    """
    import pyvirtualcam

    height, width = picture.shape[:2]
    try:
        return pyvirtualcam.Camera(width, height, fps, fmt=pyvirtualcam.PixelFormat.BGR, device=str(target.device))
    except RuntimeError as error:  # its own way to say all that goes wrong
        said = str(error).removeprefix("'v4l2loopback' backend: ")
        raise Lost(f"it takes no pictures of {width}x{height} ({said}): end the programs that have it open") from error
