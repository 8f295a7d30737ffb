// One hit, large: its captions and attributes, why it was found, and where to go from it.

const details = {hit: null, from: null};

function openDetails(hit, {address = true} = {}) {
  details.hit = hit;
  const dialog = $("details");
  drawDetails();
  if (!dialog.open) { details.from = document.activeElement; dialog.showModal(); }
  if (address) writeAddress(history.state && history.state.item ? "replace" : "push", hit.item_id);
  dialog.scrollTop = 0;
}

/** An item that is named in the address but is not among the hits. */
async function openById(itemId) {
  const among = grid.hits.find(hit => hit.item_id === itemId);
  if (among) { openDetails(among, {address: false}); return; }
  try { openDetails(await ask(`/items/${encodeURIComponent(itemId)}`), {address: false}); }
  catch (error) { toast([error.message, error.hint].map(sentence).join(" ")); }
}

function closeDetails() {
  if ($("details").open) $("details").close();
}

$("details").addEventListener("close", () => {
  audio.pause();
  const hit = details.hit;
  details.hit = null;
  if (history.state && history.state.item) {
    if (history.state.opened) history.back();  // so that Back does not open it again
    else writeAddress("replace");
  }
  const place = grid.hits.indexOf(hit);
  if (place >= 0 && !document.querySelector("dialog[open]")) focusHit(place);
});

function neighbour(step) {
  const place = grid.hits.indexOf(details.hit);
  const next = place < 0 ? null : grid.hits[place + step];
  if (next) { audio.pause(); openDetails(next); }
}

/** Leave the dialog and change the query: one step of the history, not two. */
function leaveFor(act) {
  if (history.state && history.state.item) {
    search.how = history.state.opened ? "replace" : "push";
    history.replaceState({item: null, opened: false}, "", location.href);
  }
  details.hit = null;
  $("details").close();
  act();
}

function drawDetails() {
  const hit = details.hit;
  const dialog = $("details");
  const held = dialog.contains(document.activeElement) ? document.activeElement.dataset.act : null;
  const place = grid.hits.indexOf(hit);
  const caption = captionOf(hit);
  const name = caption || `a ${kindOf(hit.modality)} without a caption`;
  const step = (by, words, sign) => make("button", {type: "button", class: "icon", "data-act": sign, "aria-label": words, title: words, disabled: place < 0 || !grid.hits[place + by], onclick: () => neighbour(by)}, icon(sign));

  let media;
  if (hit.modality === "audio") {
    const surface = wave(hit, 512);
    const time = make("span", {class: "time"});
    surface.addEventListener("click", event => {
      if (player.path !== mediaPath(hit) || !Number.isFinite(audio.duration)) return;
      const box = surface.getBoundingClientRect();
      audio.currentTime = audio.duration * clamp((event.clientX - box.left) / box.width, 0, 1);
    });
    media = make("div", {class: "media audio"}, surface, playButton(mediaPath(hit), {label: name, surface, time}), time);
  } else if (hit.modality === "text") {
    media = make("div", {class: "media text"}, make("p", {dir: "auto"}, caption));
  } else {
    const image = make("img", {alt: caption});
    media = make("div", {class: "media"}, show(image, mediaPath(hit), {failed: () => image.replaceWith(make("span", {class: "lost"}, icon("image"), "cannot be shown"))}));
  }

  const others = (hit.captions || []).slice(1);
  const attributes = Object.entries(hit.attributes || {}).filter(([, value]) => value !== null && value !== "");
  dialog.replaceChildren(
    make("div", {class: "bar"}, step(-1, "The hit before", "left"), step(1, "The next hit", "right"), make("span", {class: "place"}, place < 0 ? "" : `${whole(place + 1)} of ${whole(grid.hits.length)}`), make("button", {type: "button", class: "icon close", "data-act": "close", autofocus: true, "aria-label": "Close", title: "Close (Esc)", onclick: closeDetails}, icon("x"))),
    make("div", {class: "body"}, media, make("div", {class: "words"},
      make("h2", {id: "details-title", dir: "auto", class: caption ? (caption.length > 140 ? "long" : "") : "none"}, caption || "No caption"),
      others.length ? make("ul", {class: "others", "aria-label": "Other captions"}, others.map(other => make("li", {dir: "auto"}, other))) : null,
      make("div", {class: "act-row"},
        make("button", {type: "button", class: "primary", "data-act": "more", onclick: () => leaveFor(() => steer(hit, 1))}, icon("plus"), "More like this"),
        make("button", {type: "button", class: "plain", "data-act": "not", onclick: () => leaveFor(() => steer(hit, AWAY))}, icon("minus"), "Not like this"),
        make("button", {type: "button", class: "icon", "data-act": "copy", "aria-label": "Copy a link to this", title: "Copy a link to this", onclick: copyLink}, icon("link"))),
      matchPart(hit), explainPart(hit),
      attributes.length ? make("section", {}, make("h3", {}, "Attributes"), make("dl", {class: "attributes"}, attributes.map(attributeRow))) : null,
      make("details", {}, make("summary", {}, "Technical"), make("dl", {}, [["Cosine score", grid.resting || hit.score === null || hit.score === undefined ? null : number(hit.score, 5)], ["Calibrated match", hit.match === null || hit.match === undefined ? null : number(hit.match, 4)], ["Item", hit.item_id], ["Path", hit.path], ["Split", hit.split], ["Modality", hit.modality]].filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, String(value))]))))),
  );
  if (held) { const again = dialog.querySelector(`[data-act="${held}"]:not(:disabled)`) || dialog.querySelector(".close"); again.focus(); }
}

function matchPart(hit) {
  const graded = grade(hit.match);
  if (!graded || grid.resting) return null;
  const scale = make("div", {class: "scale", "aria-hidden": "true"}, make("i"), make("b"));
  scale.style.setProperty("--at", `${100 * clamp(hit.match, 0, 1)}%`);
  return make("section", {class: "fit"}, make("h3", {}, graded.word), scale, make("p", {}, matchWords(hit.match)));
}

/** What each term of the mix added to the score, or took from it. */
function explainPart(hit) {
  if (!hit.explain || hit.explain.length < 2) return null;
  const terms = allTerms();
  const greatest = Math.max(...hit.explain.map(part => Math.abs(part.share)), 1e-9);
  return make("section", {}, make("h3", {}, "Which terms earned it"), make("ul", {class: "parts", role: "list"}, hit.explain.map((part, place) => {
    const bar = make("i", {class: terms[place] ? colourOf(terms[place], place) : "captions"});
    const size = 50 * Math.abs(part.share) / greatest;
    bar.style.width = `${size}%`;
    bar.style.left = part.share < 0 ? `${50 - size}%` : "50%";
    const words = partWords(part, place);
    return make("li", {title: `${number(part.score, 4)} of the score`}, make("span", {class: "name", title: words}, words), make("span", {class: "track"}, bar), make("span", {class: "share"}, shareWords(part)));
  })));
}

function attributeRow([name, value]) {
  const column = release.columns.find(one => one.name === name);
  const text = String(value);
  const words = typeof value === "boolean" ? (value ? "yes" : "no") : typeof value === "number" ? number(value) : text;
  const filterable = column && text.trim() && column.kind !== "number";
  return [make("dt", {}, title(name)), make("dd", {}, make("span", {dir: "auto"}, words), filterable ? make("span", {class: "do"},
    make("button", {type: "button", "aria-label": `Only ${title(name)} ${words}`, title: "Only these", onclick: () => leaveFor(() => { want(name, [text]); changed(); })}, icon("check")),
    make("button", {type: "button", "aria-label": `No ${title(name)} ${words}`, title: "None of these", onclick: () => leaveFor(() => { exclude(name, text); changed(); })}, icon("not"))) : null)];
}

async function copyLink() {
  try { await navigator.clipboard.writeText(location.href); toast("Link copied"); }
  catch { toast("The link is in the address bar"); }
}

$("details").addEventListener("click", event => { if (event.target === $("details")) closeDetails(); });
$("details").addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.tagName === "INPUT") return;
  const hit = details.hit;
  const acts = {
    arrowleft: () => neighbour(-1), arrowright: () => neighbour(1), m: () => leaveFor(() => steer(hit, 1)), n: () => leaveFor(() => steer(hit, AWAY)),
    p: () => hit.modality === "audio" && playOrPause(mediaPath(hit)),
  };
  const act = acts[event.key.toLowerCase()];
  if (act) { event.preventDefault(); act(); }
});
