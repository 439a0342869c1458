"""The metrics: what /metrics answers."""

from tests.transmit.server import Serve, read_parts


def test_metrics_are_prometheus_text(serve: Serve) -> None:
    live = serve().flow()
    read_parts(live.port, 3)
    text = live.get("/metrics")[1].decode()
    assert "edgesan_fps 30.0" in text
    assert 'edgesan_frames_total{state="sent"}' in text
    assert 'edgesan_frames_total{state="rejected_age"} 1.0' in text
    assert 'edgesan_frames_total{state="faces"}' not in text
    assert "edgesan_sanitized_faces_total 13.0" in text
    assert 'edgesan_stage_seconds{quantile="0.5",stage="infer"} 0.002' in text
    assert 'edgesan_frame_age_seconds{quantile="0.99"}' in text
    assert 'edgesan_model_info{name="m",sha256="ab",version="1"} 1.0' in text
    assert "edgesan_wall_bytes_total 186000.0" in text
    assert "edgesan_wall_messages_total 600.0" in text
    assert "edgesan_wall_refused_total 1.0" in text
    assert "edgesan_refused_connections_total 0.0" in text
