"""What reaches out or writes while edgesan runs: a process for each such entry of `out`, its channel, and its kinds.

The transmit process may open no socket and no file after its start. What needs to, does it in a process of its own: an
outlet. It has no camera and no model, and sees no raw pixel: it is given what the transmit process made from sanitized
frames, and no more of it than it asks for.

    channel       the messages between the transmit process and an outlet
    process       the life of an outlet: what it gives up, its loop, its attempts
    push          RTSP, RTMP and WHIP
    record        a folder of clips
    mux           packets of the one encoder for PyAV
    rtsp_server   RTSP for players, which the system's GStreamer serves (gst_rtsp)
    webrtc        browsers that show the page
    mqtt          Home Assistant, by a broker
    feed          a provider that recognises people
    virtualcam    a camera of this machine that other programs open
    announce      the name of the camera in the local network
"""
