// Shows the picture by WebRTC where the server offers it and a way to it is found; says in words where not.

const CONNECT_MS = 10000; // from the offer to the first picture
const STILL_MS = 2500; // without a new picture
const AGAIN_MS = [1000, 2000, 5000, 10000, 30000]; // from attempts that failed to the next one
const WELL_MS = 10000; // after which a connection counts as a good one

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

/** Makes the player. `began` is called when pictures come, and `ended` with the reason when no more do. */
export function webrtcPlayer({ video, headers, began, ended }) {
  let connection = null;
  let place = null; // of this connection on the server
  let server = null; // which process of the server it is with
  let failures = 0; // since the last good connection
  let dueMs = 0; // no attempt before
  let beganMs = Infinity;
  let looking = 0; // the timer that sees whether pictures come

  async function connect() {
    const answer = await fetch("api/webrtc", { headers });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const { ice } = await answer.json();
    const mine = new RTCPeerConnection({ iceServers: ice });
    connection = mine;
    const { receiver } = mine.addTransceiver("video", { direction: "recvonly" });
    if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0; // nothing is recorded: show it at once
    mine.addEventListener("track", ({ track }) => {
      video.srcObject = new MediaStream([track]);
      video.play().catch(() => {}); // a page that is left meanwhile
    });
    mine.addEventListener("connectionstatechange", () => {
      if (mine === connection && mine.connectionState === "failed") stop("the connection is lost");
    });
    await mine.setLocalDescription(await mine.createOffer());
    // The server answers whoever calls it, so addresses are needed only where a relay is to know them.
    for (let n = 0; ice.length && mine.iceGatheringState !== "complete" && n < 30; n++) await wait(100);
    const sent = await fetch("api/webrtc", {
      method: "POST",
      headers: { ...headers, "Content-Type": "application/sdp" },
      body: mine.localDescription.sdp,
    });
    if (!sent.ok) throw new Error((await sent.text()).trim());
    place = sent.headers.get("Location");
    await mine.setRemoteDescription({ type: "answer", sdp: await sent.text() });
    await look(mine);
  }

  /** Waits for the first picture, and from then on sees that others follow. */
  async function look(mine) {
    const seen = () => video.getVideoPlaybackQuality().totalVideoFrames;
    const before = seen();
    const over = Date.now() + CONNECT_MS;
    while (mine === connection && seen() === before) {
      if (Date.now() > over) throw new Error("no way to the camera was found");
      await wait(100);
    }
    if (mine !== connection) return;
    video.hidden = false;
    beganMs = Date.now();
    began();
    let last = seen();
    looking = setInterval(() => {
      const now = seen();
      if (now === last && !document.hidden) stop("no picture came any more");
      last = now;
    }, STILL_MS);
  }

  function stop(reason) {
    clearInterval(looking);
    if (place) fetch(place, { method: "DELETE", headers, keepalive: true }).catch(() => {}); // it would notice, later
    place = null;
    connection?.close();
    connection = null;
    video.hidden = true;
    video.srcObject = null;
    if (Date.now() - beganMs > WELL_MS) failures = 0;
    beganMs = Infinity;
    dueMs = Date.now() + AGAIN_MS[Math.min(failures++, AGAIN_MS.length - 1)];
    ended(reason);
  }

  addEventListener("pagehide", () => {
    if (place) fetch(place, { method: "DELETE", headers, keepalive: true }).catch(() => {});
  });

  return {
    /** To be called once a second, with what tells one process of the server from the next: begins, or begins again. */
    async offer(process) {
      if (connection && server !== process) stop("the server has started again");
      if (connection || Date.now() < dueMs) return;
      dueMs = Infinity;
      server = process;
      if (!("RTCPeerConnection" in window)) return stop("this browser has none");
      try {
        await connect();
      } catch (error) {
        stop(error.message);
      }
    },
    stop,
    isPlaying: () => !video.hidden,
  };
}
