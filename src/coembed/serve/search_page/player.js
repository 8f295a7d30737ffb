// One sound at a time, for the whole page.

const audio = new Audio();
audio.preload = "none";
const player = {path: null, watchers: new Set()};

function tellWatchers() {
  for (const watcher of player.watchers) {
    if (watcher.element.isConnected) watcher.update();
    else player.watchers.delete(watcher);
  }
}
for (const name of ["play", "pause", "ended", "timeupdate", "loadedmetadata", "seeked"]) audio.addEventListener(name, tellWatchers);
// `timeupdate` comes four times a second, which looks like a stutter.
audio.addEventListener("play", () => { const step = () => { if (!audio.paused) { tellWatchers(); requestAnimationFrame(step); } }; step(); });

const isPlaying = path => player.path === path && !audio.paused;

async function playOrPause(path) {
  if (isPlaying(path)) { audio.pause(); return; }
  try {
    if (player.path !== path) {
      audio.pause();
      player.path = path;
      audio.src = path.startsWith("data:") ? path : await reachable(path);
    }
    await audio.play();
  } catch (error) {
    if (error.name === "AbortError" || player.path !== path) return;
    player.path = null;
    toast(error instanceof Failure ? error.message : "This browser cannot play that sound");
  }
  tellWatchers();
}

const clock = seconds => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** The button that plays `path`, and a place that shows how far it is: both kept up to date. */
function playButton(path, {label, surface = null, time = null, tab = 0} = {}) {
  const button = make("button", {type: "button", class: "play", tabIndex: tab, "aria-label": `Play ${label}`, onclick: event => { event.stopPropagation(); playOrPause(path); }}, icon("play"));
  const update = () => {
    const playing = isPlaying(path);
    const mine = player.path === path;
    setIcon(button, playing ? "pause" : "play");
    button.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${label}`);
    button.classList.toggle("playing", playing);
    const length = mine && Number.isFinite(audio.duration) ? audio.duration : 0;
    if (surface) {
      surface.style.setProperty("--played", String(length ? audio.currentTime / length : 0));
      surface.classList.toggle("heard", length > 0 && (playing || audio.currentTime > 0) && !audio.ended);
    }
    if (time) time.textContent = length ? `${clock(audio.currentTime)} / ${clock(length)}` : "";
  };
  player.watchers.add({element: button, update});
  return button;
}
