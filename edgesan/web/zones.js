// Draws zones on the picture: polygons in fractions of its sides. What they cover is always black.

const $ = (id) => document.getElementById(id);
const LEAST = 3; // corners
const STEP = { true: 0.05, false: 0.01 }; // of an arrow key, with and without Shift
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HINT = "Click corners on the picture; a click on the first one, or Enter, closes the zone. Drag corners, or move"
  + " the chosen one with the arrow keys. + adds a corner, Delete takes it away, Escape cancels.";

const within = (value) => Math.min(1, Math.max(0, Math.round(value * 1000) / 1000));

function shape(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Makes the editor. `ask` puts something to the server, and returns what is wrong; `complain` shows that. */
export function zonesEditor({ ask, headers, complain }) {
  const board = $("board");
  const idle = $("zones-hint").textContent;
  let size = [16, 9]; // of the picture
  let scene = false;
  let zones = [], fixed = []; // corners [x, y]; those of the configuration cannot be edited
  let draft = []; // corners of a zone that is not closed
  let pointer = null; // where the next corner would be
  let chosen = null; // [zone, corner]
  let dragging = false;

  function draw() {
    const at = ([x, y]) => `${x * size[0]},${y * size[1]}`;
    const corner = (point, className, label) => {
      const [x, y] = point.map((value) => `${Math.round(100 * value)} %`);
      return shape("path", {
        d: `M${at(point)}h0.001`,
        class: `corner ${className}`,
        tabindex: 0,
        role: "button",
        "aria-label": `${label}: ${x} from the left, ${y} from the top`,
      });
    };
    board.setAttribute("viewBox", `0 0 ${size.join(" ")}`);
    const focused = board.contains(document.activeElement) && document.activeElement !== board;
    const shapes = fixed.map((zone) => shape("polygon", { points: zone.map(at).join(" "), class: "fixed" }));
    zones.forEach((zone, z) => {
      const outline = shape("polygon", { points: zone.map(at).join(" "), class: chosen?.[0] === z ? "chosen" : "" });
      outline.pick = [z, 0];
      shapes.push(outline);
    });
    zones.forEach((zone, z) => zone.forEach((point, c) => {
      const is = chosen?.[0] === z && chosen[1] === c;
      const dot = corner(point, is ? "chosen" : "", `zone ${z + 1}, corner ${c + 1}`);
      dot.pick = [z, c];
      shapes.push(dot);
    }));
    if (draft.length) {
      shapes.push(shape("polyline", { points: [...draft, ...(pointer ? [pointer] : [])].map(at).join(" ") }));
      draft.forEach((point, c) => {
        const dot = corner(point, c === 0 ? "first" : "", `new zone, corner ${c + 1}`);
        dot.closes = c === 0;
        shapes.push(dot);
      });
    }
    board.replaceChildren(...shapes);
    if (focused) (board.querySelector(".corner.chosen") ?? board).focus({ preventScroll: true });
    $("zones-delete").disabled = !chosen;
  }

  function place(event) {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(board.getScreenCTM().inverse());
    return [within(x / size[0]), within(y / size[1])];
  }

  function close() {
    if (draft.length >= LEAST) {
      zones.push(draft);
      chosen = [zones.length - 1, 0];
    }
    draft = [];
    pointer = null;
  }

  function open(is) {
    board.toggleAttribute("hidden", !is); // an SVG has no property for it
    $("zones-tools").hidden = !is;
    $("zones-edit").hidden = is;
  }

  function leave() {
    open(false);
    $("zones-hint").textContent = idle;
    complain("zones-error", "");
    $("zones-edit").focus();
  }

  async function enter() {
    try {
      const answer = await fetch("api/zones", { headers });
      if (!answer.ok) return complain("zones-error", (await answer.text()).trim());
      ({ zones, fixed = [] } = await answer.json());
    } catch (error) {
      return complain("zones-error", `the camera does not answer (${error.message})`);
    }
    [draft, chosen, pointer] = [[], null, null];
    complain("zones-error", "");
    open(true);
    $("zones-hint").textContent = scene ? HINT : `${HINT} Without a scene, the picture does not show the room.`;
    board.tabIndex = 0;
    draw();
    board.focus({ preventScroll: true });
  }

  async function save() {
    close();
    draw();
    const wrong = await ask("api/zones", { zones });
    if (wrong) complain("zones-error", wrong);
    else leave();
  }

  board.addEventListener("pointerdown", (event) => {
    event.preventDefault(); // keeps the focus here
    const { pick, closes } = event.target;
    const handle = event.target.classList.contains("corner");
    if (closes && draft.length >= LEAST) {
      close();
    } else if (pick && (handle || !draft.length)) {
      chosen = pick;
      dragging = handle;
      if (dragging) board.setPointerCapture(event.pointerId);
    } else if (!closes) {
      chosen = null;
      draft.push(place(event));
    }
    board.focus({ preventScroll: true });
    draw();
    if (chosen) board.querySelector(".corner.chosen")?.focus({ preventScroll: true });
  });
  board.addEventListener("pointermove", (event) => {
    if (dragging) zones[chosen[0]][chosen[1]] = place(event);
    else if (draft.length) pointer = place(event);
    else return;
    draw();
  });
  for (const kind of ["pointerup", "pointercancel"]) board.addEventListener(kind, () => { dragging = false; });
  board.addEventListener("focusin", (event) => {
    if (!event.target.pick || event.target.classList.contains("chosen")) return;
    chosen = event.target.pick;
    draw();
  });

  board.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const zone = chosen && zones[chosen[0]];
    if (event.key === "Enter" && draft.length) {
      close();
    } else if (zone && ARROWS[event.key]) {
      const [x, y] = zone[chosen[1]];
      const [right, down] = ARROWS[event.key].map((way) => way * STEP[event.shiftKey]);
      zone[chosen[1]] = [within(x + right), within(y + down)];
    } else if (zone && (event.key === "Delete" || event.key === "Backspace")) {
      zone.splice(chosen[1], 1);
      if (zone.length < LEAST) remove();
      else chosen = [chosen[0], chosen[1] % zone.length];
    } else if (zone && (event.key === "+" || event.key === "Insert")) {
      const [here, next] = [zone[chosen[1]], zone[(chosen[1] + 1) % zone.length]];
      zone.splice(chosen[1] + 1, 0, here.map((value, axis) => within((value + next[axis]) / 2)));
      chosen = [chosen[0], chosen[1] + 1];
    } else {
      return;
    }
    event.preventDefault();
    draw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || $("zones-tools").hidden) return;
    if (draft.length) [draft, pointer] = [[], null];
    else return leave();
    draw();
  });

  function remove() {
    zones.splice(chosen[0], 1);
    chosen = null;
  }

  $("zones-edit").addEventListener("click", enter);
  $("zones-cancel").addEventListener("click", leave);
  $("zones-save").addEventListener("click", save);
  $("zones-delete").addEventListener("click", () => {
    remove();
    draw();
    board.focus({ preventScroll: true });
  });
  $("zones-add").addEventListener("click", () => {
    close();
    zones.push([[0.35, 0.35], [0.65, 0.35], [0.65, 0.65], [0.35, 0.65]]);
    chosen = [zones.length - 1, 0];
    draw();
    board.querySelector(".corner.chosen").focus({ preventScroll: true });
  });

  return {
    /** Takes what the editor needs of a status. */
    show(status) {
      $("zones").hidden = status.zones === undefined;
      if (status.size?.every(Boolean)) size = status.size; // none while the camera is closed
      scene = status.scene?.in_force === true;
    },
  };
}
