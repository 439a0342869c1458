"""Shared by the tests of network cameras."""

from tests.capture.conftest import http_camera

__all__ = ["http_camera"]
