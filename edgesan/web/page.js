"use strict";
// Shows /api/status once a second, and sends the dial's value to the server.

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};
let broken = false; // the server went away: open the stream again when it is back
let turning = false; // the viewer is moving the dial: do not move it

const rate = (bytes) => (bytes < 1000 ? `${bytes.toFixed(0)} B/s` : `${(bytes / 1000).toFixed(1)} kB/s`);

function show(status) {
  const live = status.camera_up && status.ready;
  $("status").textContent = live ? "live" : status.camera_up === false ? "camera lost – trying again" : "waiting for a picture";
  $("status").className = live ? "live" : "lost";
  $("picture").classList.toggle("old", !status.ready);
  $("fps").textContent = (status.fps ?? 0).toFixed(1);
  $("faces").textContent = status.faces ?? "–";
  $("age").textContent = status.transmit.ms.glass_to_wire?.p50.toFixed(0) ?? "–";
  $("viewers").textContent = status.transmit.viewers;
  $("wall").textContent = status.wall ? rate(status.wall.bytes_per_s) : "–";
  const warnings = status.warnings ?? [];
  if (status.background === "keep" && !warnings.length) warnings.push("the background is RAW"); // never silent
  $("warning").hidden = warnings.length === 0;
  $("warning").textContent = warnings.join(" · ");
  $("alpha").disabled = !status.model || !status.ready; // no sanitizer would receive it
  if (!status.model) return; // no sanitizer runs now
  $("model").textContent = `${status.model.name} v${status.model.version} (${status.model.sha256.slice(0, 8)})`;
  $("private").textContent = status.model.private;
  $("utility").textContent = status.model.utility;
  $("measured").textContent = status.model.measured;
  $("camera").textContent = status.camera;
  $("background").textContent = status.background;
  $("isolation").textContent = status.isolation?.summary ?? "–";
  const dial = $("alpha");
  [dial.min, dial.max] = status.model.alpha_range;
  $("alpha-value").textContent = status.alpha.toFixed(2); // what the sanitizer does, not what was asked
  if (!turning) dial.value = status.alpha;
  $("stages").replaceChildren(...Object.entries({ ...status.ms, ...status.transmit.ms }).map(([stage, ms]) => {
    const row = document.createElement("tr");
    for (const text of [stage, ms.p50.toFixed(2), ms.p99.toFixed(2)]) row.insertCell().textContent = text;
    return row;
  }));
}

async function poll() {
  try {
    const answer = await fetch("api/status", { headers });
    if (answer.status === 401) location.reload(); // another token is in force: the server asks for it
    if (!answer.ok) throw new Error(await answer.text());
    show(await answer.json());
    if (broken) watch();
    broken = false;
  } catch (error) {
    broken = true;
    $("status").textContent = `no connection (${error.message.trim()})`;
    $("status").className = "lost";
    $("picture").classList.add("old");
  }
}

async function turn() {
  const answer = await fetch("api/alpha", {
    method: "PUT",
    headers: { ...headers, "Content-Type": "application/json" },
    body: JSON.stringify({ alpha: Number($("alpha").value) }),
  });
  $("dial-error").hidden = answer.ok;
  $("dial-error").textContent = answer.ok ? "" : await answer.text();
  turning = false;
  setTimeout(poll, 600);
}

$("alpha").addEventListener("input", () => { turning = true; });
$("alpha").addEventListener("change", () => turn().catch((error) => {
  turning = false;
  $("dial-error").hidden = false;
  $("dial-error").textContent = error.message;
}));
$("picture").addEventListener("error", () => setTimeout(watch, 1000));

function watch() {
  // A picture cannot send headers: its token stands in the address.
  $("picture").src = `stream.mjpg?since=${Date.now()}` + (token ? `&token=${encodeURIComponent(token)}` : "");
}

watch();
poll();
setInterval(poll, 1000);
