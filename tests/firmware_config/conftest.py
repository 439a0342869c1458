"""Shared by the tests of boards."""

from tests.capture.conftest import http_camera

__all__ = ["http_camera"]
