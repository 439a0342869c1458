// Shows /api/status once a second, and sends the dial, the privacy switch and the zones to the server.
import { webrtcPlayer } from "./webrtc.js";
import { zonesEditor } from "./zones.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};
let broken = false; // the server went away: open the stream again when it is back
let turning = false; // the viewer is moving the dial: do not move it
let settled = 0; // the timer that ends this
let switching = false; // the viewer has pressed the switch, and no answer is there
let last = {}; // the newest status
const shown = {}; // what long parts of the page show, so that nothing under the viewer's hand is made anew each second

const rate = (bytes) => (bytes < 1000 ? `${bytes.toFixed(0)} B/s` : `${(bytes / 1000).toFixed(1)} kB/s`);
const percent = (share) => `${Math.round(100 * share)} %`;
const short = (number) => String(Number(number.toFixed(2)));

function say(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text; // a screen reader says what changes
}

function complain(id, text) {
  say(id, text);
  $(id).hidden = !text;
}

function make(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

function list(id, items, row) {
  const key = JSON.stringify(items);
  if (shown[id] !== key) $(id).replaceChildren(...items.map(row));
  shown[id] = key;
}

/** A line of text that one button copies: {kind, text, url}. */
function copyable({ kind, text, url }) {
  const row = document.createElement("li");
  const code = document.createElement("code");
  code.append(url ? make("a", text, { href: url }) : text);
  if (kind) row.append(make("span", kind, { className: "kind" }));
  row.append(code, make("button", "Copy", { type: "button", className: "copy", ariaLabel: `Copy ${text}` }));
  return row;
}

/** What to tell of an answer to the privacy switch that could not be recorded. */
function forgotten({ asked, recorded }) {
  if (recorded !== false) return "";
  return asked ? "The camera is off, but only until its next start: this could not be recorded."
    : "The camera stays off: it is turned on only if that can be recorded.";
}

/** Puts something to the server. Returns what is wrong, in the server's words; empty if nothing. */
async function ask(path, body) {
  try {
    const answer = await fetch(path, {
      method: "PUT",
      headers: { ...headers, "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return answer.ok ? forgotten(await answer.json()) : (await answer.text()).trim();
  } catch (error) {
    return `the camera does not answer (${error.message})`;
  }
}

/** What the audit says at a point of the dial: figures and attacker. Between audited points the figures are mixed. */
function audited(points, alpha, model) {
  const figures = (at) => {
    const service = (at.useful ?? "household").includes("household") ? "household" : model.utility;
    const kept = at.utility == null ? "" : `, ${service} recognised ${percent(at.utility)}`;
    const right = `${model.private} ${percent(at.private_accuracy)}`;
    return `at ${short(at.alpha)}: ${right} by the best attacker on ${at.people ?? "strangers"}${kept}`;
  };
  const sorted = [...points].sort((p, q) => p.alpha - q.alpha);
  if (!sorted.length) return [`at ${short(alpha)}: not audited`, ""];
  const below = sorted.findLast((p) => p.alpha <= alpha + 0.005); // the dial has steps of 0.01
  const above = sorted.find((p) => p.alpha >= alpha - 0.005);
  if (below && below === above) return [figures(below), below.attacker];
  if (below && above && below.people === above.people && below.useful === above.useful) {
    const share = (alpha - below.alpha) / (above.alpha - below.alpha);
    const mix = (low, high) => (low == null || high == null ? null : low + share * (high - low));
    const between = {
      ...below,
      alpha,
      private_accuracy: mix(below.private_accuracy, above.private_accuracy),
      utility: mix(below.utility, above.utility),
    };
    const attackers = [...new Set([below.attacker, above.attacker].filter(Boolean))].join("; ");
    return [`${figures(between)} (between the audited ${short(below.alpha)} and ${short(above.alpha)})`, attackers];
  }
  const way = (p) => (p ? Math.abs(p.alpha - alpha) : Infinity);
  const nearest = way(below) < way(above) ? below : above;
  return [`at ${short(alpha)}: not audited. The nearest audited point, ${figures(nearest)}`, nearest.attacker];
}

function showDial() {
  const { model } = last;
  if (!model) return;
  const alpha = turning ? Number($("alpha").value) : last.alpha;
  $("alpha-value").textContent = alpha.toFixed(2); // once it is let go, what the sanitizer does, not what was asked
  const [figures, attacker] = audited(last.audited ?? model.audited ?? [], alpha, model);
  say("audited", figures);
  say("attacker", attacker ? `attacker: ${attacker}` : "");
}

function state(status) {
  if (status.privacy) return ["off", "camera off"];
  if (status.camera_up === false) return ["lost", "camera lost – trying again"];
  if (!status.ready) return ["lost", "waiting for a picture"];
  return status.warnings?.length ? ["warned", "live, but read the warning"] : ["live", "live"];
}

function tell(kind, text, note) {
  document.querySelector("main").classList.remove("waiting");
  say("status", text);
  $("status").className = kind;
  const picture = $("picture");
  const full = document.fullscreenElement || $("stage").classList.contains("filled");
  const warning = full && kind === "warned" ? (last.warnings ?? []).join(" · ") : "";
  const seen = player.isPlaying() || picture.naturalWidth;
  complain("note", note || !seen ? text : warning); // nothing else of the page is seen in full screen
}

function show(status) {
  if (last.version && last.version !== status.version) location.reload(); // the server has become another one
  last = status;
  const off = status.privacy === true;
  const live = status.ready && !off && status.camera_up !== false;
  document.title = status.name || "edgesan";
  say("name", status.name || "edgesan");
  list("warning", status.warnings ?? [], (text) => make("li", text));
  $("warning").hidden = !status.warnings?.length;
  // While the camera is lost, the server sends a card that says so: that one is not old.
  const old = !status.ready && status.camera_up === true;
  $("stage").classList.toggle("old", old);
  $("picture").classList.remove("gone");
  const webrtc = (status.outputs ?? []).find(({ kind }) => kind === "webrtc");
  if (webrtc?.connected) player.offer(webrtc.starts);
  else if (!player.isPlaying()) complain("way", "");
  if (status.size?.every(Boolean)) $("stage").style.aspectRatio = status.size.join(" / "); // none while it is closed
  $("fps").textContent = live ? (status.fps ?? 0).toFixed(1) : "–";
  $("faces").textContent = live ? status.faces ?? "–" : "–";
  const delay = status.transmit.ms.glass_to_wire; // measured while somebody watches
  $("age").textContent = live && delay ? `${delay.p50.toFixed(0)} ms` : "–";
  const others = (status.outputs ?? []).map(({ viewers }) => viewers ?? 0);
  $("viewers").textContent = others.reduce((sum, count) => sum + count, status.transmit.viewers);
  $("wall").textContent = status.wall ? rate(status.wall.bytes_per_s) : "–";
  zones.show(status);
  showSwitch(status);
  showScene(status);
  showLinks(status.links);
  tell(...state(status), old);
  $("alpha").disabled = !status.model || !status.ready; // no sanitizer would receive it
  if (!status.model) return; // no sanitizer runs now
  say("model", `${status.model.name} v${status.model.version} (${status.model.sha256.slice(0, 8)})`);
  for (const key of ["private", "utility", "measured"]) say(key, status.model[key] ?? "–");
  say("camera", status.camera ?? "–");
  const bare = status.background === "scene" && !status.scene?.in_force;
  say("background", bare ? "plain, until a scene is in force" : status.background ?? "–");
  showIsolation(status.isolation);
  const dial = $("alpha");
  [dial.min, dial.max] = status.model.alpha_range;
  if (!turning) dial.value = status.alpha;
  showDial();
  $("stages").replaceChildren(...Object.entries({ ...status.ms, ...status.transmit.ms }).map(([stage, ms]) => {
    const row = document.createElement("tr");
    for (const text of [stage, ms.p50.toFixed(2), ms.p99.toFixed(2)]) row.insertCell().textContent = text;
    return row;
  }));
}

function showSwitch({ privacy }) {
  $("switch").hidden = typeof privacy !== "boolean";
  if (switching) return;
  $("privacy").checked = privacy === true;
  say("privacy-hint", privacy
    ? "The camera is off: no frame is read until you switch it on again, not even after a restart."
    : "Switch the camera off: then no frame is read, not even after a restart.");
}

const IN_FORCE = "a still of the empty room is the background. Whatever differs from it is a flat silhouette.";
const DIFFERS = "The picture differs too much from the scene (lights off, camera moved?): plain background until it"
  + " fits again.";
const NONE = "None: the background is a flat colour. With a still of the empty room, people show as silhouettes in it.";
const TAKE = "camera's machine: leave the room and take the still, look at it, and accept it. It is shown only then.";
const CLEAR = "On the camera's machine, this takes it away: the background is a flat colour again.";

function showScene({ scene, camera }) {
  $("scene").hidden = !scene;
  if (!scene) return;
  const id = typeof scene.id === "number" ? scene.id.toString(16).padStart(8, "0") : scene.id;
  const demo = camera === "demo"; // its scene comes with it
  const own = scene.in_force && !demo;
  say("scene-state", !scene.in_force ? NONE : scene.differs ? DIFFERS : `In force (${id}): ${IN_FORCE}`);
  $("scene-state").className = scene.in_force && scene.differs ? "error" : "";
  say("scene-hint", own ? CLEAR : `On ${demo ? "your own" : "the"} ${TAKE}`);
  const commands = own ? ["edgesan scene clear"] : ["edgesan scene take", "edgesan scene accept"];
  list("scene-steps", commands, (text) => copyable({ text }));
}

function showLinks(links) {
  const here = location.origin + location.pathname;
  const kinds = { "picture stream": "stream.mjpg", snapshot: "snapshot.jpg" };
  const known = links ?? Object.entries(kinds).map(([kind, path]) => ({ kind, url: here + path }));
  const query = token ? `?token=${encodeURIComponent(token)}` : ""; // as this page has it; not in what is copied
  list("links", known, ({ kind, url }) => copyable({ kind, text: url, url: url + query }));
  const stream = known.find(({ url }) => url.endsWith("stream.mjpg"))?.url ?? `${here}stream.mjpg`;
  const ways = [stream.replace("://", "://cam:TOKEN@"), "Authorization: Bearer TOKEN"];
  list("tokens", ways, (text) => copyable({ text }));
}

function showIsolation(isolation) {
  const claims = isolation?.claims ?? [];
  const missing = claims.filter((claim) => !claim.holds);
  const whole = `all ${claims.length} restrictions hold`;
  const weak = `${missing.length} of ${claims.length} restrictions do NOT hold`;
  say("isolation", !claims.length ? isolation?.summary ?? "–" : missing.length ? weak : whole);
  $("isolation").className = missing.length ? "error" : "";
  list("claims", [...missing, ...claims.filter((claim) => claim.holds)], ({ process, name, holds, cure }) =>
    make("li", holds ? `${process}: ${name}` : `${process}: "${name}" does not hold. ${cure ?? ""}`, {
      className: holds ? "" : "missing",
    }));
}

async function poll() {
  try {
    const answer = await fetch("api/status", { headers, signal: AbortSignal.timeout(5000) });
    if (answer.status === 401) location.reload(); // another token is in force: the server asks for it
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const status = await answer.json();
    if (broken) {
      player.hurry(); // what failed before says nothing now
      if (!player.isPlaying()) watch();
    }
    broken = false;
    show(status);
  } catch {
    broken = true;
    $("stage").classList.add("old");
    for (const id of ["fps", "faces", "age", "viewers", "wall"]) $(id).textContent = "–";
    tell("lost", "no connection – trying again", true);
  }
}

const player = webrtcPlayer({
  video: $("video"),
  headers,
  began() {
    $("picture").removeAttribute("src"); // the same picture twice would cost the camera twice
    $("picture").hidden = true;
    complain("way", "The picture comes by WebRTC.");
  },
  ended(reason) {
    complain("way", `The picture comes by MJPEG, later and with more bytes than by WebRTC: ${reason}.`);
    $("picture").hidden = false;
    if (!$("picture").hasAttribute("src")) watch();
  },
});

function watch() {
  // A picture cannot send headers: its token stands in the address.
  $("picture").src = `stream.mjpg?since=${Date.now()}` + (token ? `&token=${encodeURIComponent(token)}` : "");
}

async function fullScreen() {
  const stage = $("stage");
  if (document.fullscreenElement) return document.exitFullscreen();
  if (stage.classList.contains("filled")) return stage.classList.remove("filled");
  try {
    await stage.requestFullscreen();
  } catch {
    stage.classList.add("filled"); // a phone that has full screen for films only, or a frame that may not
  }
}

async function copy(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch { // without TLS a browser gives no clipboard: select the text, and copy as a person would
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

const zones = zonesEditor({ ask, headers, complain });

$("alpha").addEventListener("input", () => {
  clearTimeout(settled);
  turning = true;
  showDial();
});
$("alpha").addEventListener("change", async () => {
  complain("dial-error", await ask("api/alpha", { alpha: Number($("alpha").value) }));
  settled = setTimeout(() => { turning = false; }, 600); // until the sanitizer has heard it
});
$("privacy").addEventListener("change", async () => {
  switching = true;
  complain("privacy-error", await ask("api/privacy", { on: $("privacy").checked }));
  switching = false;
  poll();
});
$("picture").addEventListener("error", () => {
  $("picture").classList.add("gone");
  setTimeout(() => player.isPlaying() || watch(), 1000);
});
$("full").addEventListener("click", fullScreen);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (button) copy(button);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "f") fullScreen();
  if (event.key === "Escape") $("stage").classList.remove("filled");
});

async function follow() {
  await poll();
  setTimeout(follow, 1000);
}

watch();
follow();
