"""The counters of all processes in Prometheus' text format: the answer of /metrics."""

import math
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

NOT_FRAMES: Final = {  # totals that do not count frames
    "faces": ("edgesan_sanitized_faces", "Faces that were sanitized."),
    "camera_lost": ("edgesan_camera_losses", "How often the camera was lost."),
    "refused_connections": (
        "edgesan_refused_connections",
        "Connections that were refused because there were too many.",
    ),
}
WALL: Final = {
    "bytes": ("edgesan_wall_bytes", "Bytes from the process that sees the camera to the one that serves."),
    "messages": ("edgesan_wall_messages", "Messages from the process that sees the camera."),
    "refused": ("edgesan_wall_refused", "Messages that were malformed or came too fast."),
}
ENCODERS: Final = {
    "encodes": ("edgesan_encodes", "Frames that were encoded, once for all."),
    "encode_errors": ("edgesan_encode_errors", "How often an encoder failed, and was begun anew."),
}
OUTPUTS: Final = {
    "bytes": ("edgesan_output_bytes", "Bytes that an output has taken."),
    "retries": ("edgesan_output_retries", "Attempts to connect after the first."),
    "dropped": ("edgesan_output_dropped", "Messages that an output was too slow for, or that were too large."),
}


class Exporter(Collector):
    """Turns the report of the moment into the text of /metrics."""

    def __init__(self, report: Callable[[], dict[str, Any]]) -> None:
        self._report = report
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> list[Metric]:
        """Return the metrics of the moment."""
        r = self._report()
        transmit = r["transmit"]
        totals, spans = r.get("totals", {}) | transmit["totals"], r.get("ms", {}) | transmit["ms"]
        frames = CounterMetricFamily("edgesan_frames", "Frames by what became of them.", labels=["state"])
        for state, value in totals.items():
            if state not in NOT_FRAMES:
                frames.add_metric([state], value)
        families: list[Metric] = [frames]
        for counted, names in ((totals, NOT_FRAMES), (r.get("wall", {}), WALL)):
            for key, (name, text) in names.items():
                families.append(CounterMetricFamily(name, text, value=counted.get(key, 0)))
        stages = GaugeMetricFamily("edgesan_stage_seconds", "Time in each stage, lately.", labels=["stage", "quantile"])
        age = GaugeMetricFamily("edgesan_frame_age_seconds", "From glass to wire, lately.", labels=["quantile"])
        for stage, values in spans.items():
            for percentile, value in values.items():
                quantile = f"{int(percentile[1:]) / 100:g}"
                if stage == "glass_to_wire":
                    age.add_metric([quantile], value / 1000)
                else:
                    stages.add_metric([stage, quantile], value / 1000)
        families += [stages, age]
        for name, text, value in (
            ("edgesan_fps", "Sanitized frames per second.", r.get("fps", 0)),
            ("edgesan_faces", "Faces in the newest frame.", r.get("faces") or 0),
            ("edgesan_viewers", "Streams that are open.", transmit["viewers"]),
            ("edgesan_camera_up", "1 while the camera gives frames.", int(bool(r.get("camera_up")))),
            ("edgesan_privacy", "1 while the owner has the camera closed.", int(bool(r.get("privacy")))),
            ("edgesan_isolated", "1 while every restriction holds.", int(r.get("isolation", {}).get("whole", False))),
            ("edgesan_alpha", "The dial.", r.get("alpha", math.nan)),
            ("edgesan_uptime_seconds", "Since the start.", r.get("uptime_s", 0)),
        ):
            families.append(GaugeMetricFamily(name, text, value=value))
        families += [*_encoders(r), *_outputs(r.get("outputs", []))]
        model = r.get("model", {})
        info = GaugeMetricFamily("edgesan_model_info", "The model that runs.", labels=["name", "version", "sha256"])
        info.add_metric([str(model.get(key, "")) for key in ("name", "version", "sha256")], 1)
        camera = GaugeMetricFamily("edgesan_info", "This camera.", labels=["name", "version"])
        camera.add_metric([r.get("name", ""), r.get("version", "")], 1)
        return [*families, info, camera]


def _encoders(report: dict[str, Any]) -> list[Metric]:
    """Return the metrics of the encoders, by codec."""
    families: list[Metric] = []
    for key, (name, text) in ENCODERS.items():
        family = CounterMetricFamily(name, text, labels=["codec"])
        for codec, value in report.get(key, {}).items():
            family.add_metric([codec], value)
        families.append(family)
    return families


def _outputs(outputs: list[dict[str, Any]]) -> list[Metric]:
    """Return the metrics of what reaches out. Two outputs may have the same name, which shows no path."""
    up = GaugeMetricFamily("edgesan_output_up", "1 while it takes what is sent.", labels=["output", "to"])
    viewers = GaugeMetricFamily("edgesan_output_viewers", "Viewers who came to it.", labels=["output", "to"])
    families: list[Metric] = [up, viewers]
    for number, output in enumerate(outputs):
        up.add_metric([str(number), output["to"]], int(output["connected"]))
        viewers.add_metric([str(number), output["to"]], output["viewers"])
    for key, (name, text) in OUTPUTS.items():
        family = CounterMetricFamily(name, text, labels=["output", "to"])
        for number, output in enumerate(outputs):
            family.add_metric([str(number), output["to"]], output[key])
        families.append(family)
    return families
