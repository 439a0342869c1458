"""A real RTSP server that takes a push and writes it to a file, by the system's Python and gst-rtsp-server.

Arguments: [HOST:]PORT FILE [USER PASSWORD [CERTIFICATE_AND_KEY]]; an empty user: nobody is asked.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)
place, path, user, password, pem = (*sys.argv[1:], "", "", "")[:5]
host, _, port = place.rpartition(":")
server = GstRtspServer.RTSPServer(service=port, address=host or "127.0.0.1")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
factory.set_launch(
    "( rtph264depay name=depay0 ! h264parse ! matroskamux streamable=true"
    f" ! filesink sync=false buffer-mode=unbuffered location={path} )"
)
auth, token, permissions = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken(), GstRtspServer.RTSPPermissions()
token.set_string("media.factory.role", "user")
if user:
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
else:
    auth.set_default_token(token)
if pem:
    auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(pem))
server.set_auth(auth)
for right in ("media.factory.access", "media.factory.construct"):
    permissions.add_permission_for_role("user", right, True)
factory.set_permissions(permissions)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
