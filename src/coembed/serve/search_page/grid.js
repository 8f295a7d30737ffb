// The hits: cards in a grid, walked with the arrow keys; what is shown when there are none.

const grid = {hits: [], at: 0, mixed: false};
const mediaPath = hit => hit.media || `/items/${encodeURIComponent(hit.item_id)}/media`;
const thumbnailPath = (hit, px = 256) => `${hit.thumbnail || `/items/${encodeURIComponent(hit.item_id)}/thumbnail`}?px=${px}`;
const captionOf = hit => (hit.captions || [])[0] || "";

/** The attributes that a card has room for: words first, then numbers. */
function brief(hit) {
  const shown = Object.entries(hit.attributes || {}).filter(([name, value]) => {
    const column = release.columns.find(one => one.name === name);
    return value !== null && value !== "" && typeof value !== "boolean" && !(column && looksLikeIds(column));
  });
  const order = columnsInOrder().map(column => column.name);
  shown.sort(([one], [other]) => order.indexOf(one) - order.indexOf(other));
  const numeric = shown.filter(([, value]) => typeof value === "number").slice(0, 1);
  const words = shown.filter(([, value]) => typeof value !== "number").slice(0, 3);
  return [...words, ...numeric].map(([, value]) => typeof value === "number" ? number(value) : clip(String(value), 24));
}

/** A sound's picture, lit as far as it is played; a plain sign where there is none. */
function wave(hit, px) {
  const surface = make("div", {class: "wave"});
  show(new Image(), thumbnailPath(hit, px), {
    loaded: image => { surface.style.setProperty("--wave", `url("${image.src}")`); surface.classList.add("here"); },
    failed: () => surface.classList.add("bare"),
  });
  surface.append(icon("sound"));
  return surface;
}

function face(hit) {
  if (hit.modality === "audio") return wave(hit, 512);
  if (hit.modality === "text") return make("p", {class: "passage", dir: "auto"}, captionOf(hit));
  const image = make("img", {alt: "", draggable: false, decoding: "async"});
  return show(image, thumbnailPath(hit), {failed: () => image.replaceWith(make("span", {class: "lost"}, icon("image"), "cannot be shown"))});
}

function card(hit, place) {
  const caption = captionOf(hit);
  const graded = grade(hit.match);
  const weak = graded && graded.bars === 1;
  const name = caption || `${kindOf(hit.modality)} without a caption`;
  const surface = face(hit);
  const open = make("button", {
    type: "button", class: "open", tabIndex: place === grid.at ? 0 : -1, "data-place": place,
    "aria-label": [name, graded ? graded.word : "", kindOf(hit.modality)].filter(Boolean).join(", "), "aria-keyshortcuts": "Enter M N" + (hit.modality === "audio" ? " P" : ""),
    onclick: () => openDetails(hit),
  });
  const tool = (act, words, sign, weight) => make("button", {type: "button", class: `tool ${act}`, tabIndex: place === grid.at ? 0 : -1, "aria-label": `${words}: ${name}`, title: `${words} (${act[0].toUpperCase()})`, onclick: () => steer(hit, weight)}, icon(sign), make("span", {}, act === "more" ? "More" : "Not"));
  const score = hit.score === null || hit.score === undefined || grid.resting ? null
    : graded ? make("p", {class: "match", title: `${matchWords(hit.match)} Cosine ${number(hit.score, 3)}.`}, meter(hit.match), make("span", {}, graded.word))
    : make("p", {class: "match bare"}, make("span", {}, `similarity ${hit.score.toFixed(2)}`));
  const facts = brief(hit);
  return make("li", {class: `card ${hit.modality}${weak ? " weak" : ""}`, "data-id": hit.item_id},
    make("div", {class: "frame"}, surface, open,
      hit.modality === "audio" ? playButton(mediaPath(hit), {label: name, surface, tab: -1}) : null,
      make("div", {class: "acts"}, tool("more", "More like this", "plus", 1), tool("not", "Not like this", "minus", AWAY))),
    make("p", {class: caption ? "caption" : "caption none", dir: "auto", title: caption, onclick: () => openDetails(hit)}, caption || "no caption"),
    hit.explain && hit.explain.length > 1 ? earned(hit) : null,
    score,
    facts.length ? make("p", {class: "facts"}, facts.map(fact => make("span", {}, fact))) : null);
}

/** Which terms earned the hit, as one thin bar. */
function earned(hit) {
  const terms = allTerms();
  const bar = make("div", {class: "earned", role: "img", "aria-label": hit.explain.map((part, place) => `${partWords(part, place)} ${shareWords(part)}`).join(", ")});
  hit.explain.forEach((part, place) => {
    const piece = make("i", {class: terms[place] ? colourOf(terms[place], place) : "captions", title: `${partWords(part, place)}: ${shareWords(part)}`});
    piece.style.flexGrow = String(Math.max(.001, Math.abs(part.share)));
    bar.append(piece);
  });
  return bar;
}

/** A part of a score in words. */
function partWords(part, place) {
  const term = allTerms()[place];
  if (part.kind === "keywords" || !term) return "words in the caption";
  if (term.kind === "text") return term.weight < 0 ? `not ${term.value}` : term.value;
  return `${term.weight < 0 ? "not like" : "like"} ${termWords(term)}`;
}

const shareWords = part => `${part.share < 0 ? "−" : "+"}${Math.round(100 * Math.abs(part.share))}%`;

function drawGrid(hits, {append = false} = {}) {
  const list = $("grid");
  const held = list.contains(document.activeElement);
  list.classList.remove("stale", "bones");
  if (!append) { grid.hits = []; grid.at = 0; list.replaceChildren(); }
  const first = grid.hits.length;
  grid.hits.push(...hits);
  hits.forEach(rememberItem);
  list.append(...hits.map((hit, place) => {
    const made = card(hit, first + place);
    made.style.setProperty("--delay", `${Math.min(place, 12) * 18}ms`);
    return made;
  }));
  if (held && grid.hits.length) focusHit(append ? first : 0);
}

function drawBones() {
  const list = $("grid");
  if (grid.hits.length) { list.classList.add("stale"); return; }
  list.classList.add("bones");
  list.replaceChildren(...Array.from({length: 12}, () => make("li", {class: "card", "aria-hidden": "true"}, make("div", {class: "frame"}), make("p", {class: "caption"}), make("p", {class: "facts"}))));
}

function clearGrid() {
  grid.hits = [];
  grid.at = 0;
  $("grid").classList.remove("stale", "bones");
  $("grid").replaceChildren();
}

const cardAt = place => $("grid").children[place];

function focusHit(place) {
  if (!grid.hits.length) return;
  const next = clamp(place, 0, grid.hits.length - 1);
  for (const [at, tab] of [[grid.at, -1], [next, 0]]) {
    const one = cardAt(at);
    if (one) for (const button of one.querySelectorAll(".open, .tool")) button.tabIndex = tab;
  }
  grid.at = next;
  const open = cardAt(next).querySelector(".open");
  open.focus({preventScroll: true});
  cardAt(next).scrollIntoView({block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth"});
}

/** How many cards stand in a row now. */
function columnsNow() {
  const cards = [...$("grid").children];
  const top = cards.length ? cards[0].offsetTop : 0;
  const next = cards.findIndex(one => one.offsetTop > top + 4);
  return next < 0 ? Math.max(1, cards.length) : next;
}

$("grid").addEventListener("focusin", event => {
  const at = [...$("grid").children].indexOf(event.target.closest("li"));
  if (at >= 0 && at !== grid.at) {
    for (const [place, tab] of [[grid.at, -1], [at, 0]]) if (cardAt(place)) for (const button of cardAt(place).querySelectorAll(".open, .tool")) button.tabIndex = tab;
    grid.at = at;
  }
});

$("grid").addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || !grid.hits.length || $("grid").classList.contains("stale")) return;
  const hit = grid.hits[grid.at];
  const across = columnsNow();
  const moves = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across};
  if (event.key in moves) {
    event.preventDefault();
    const to = grid.at + moves[event.key];
    if (to < 0 && event.key === "ArrowUp") { $("text").focus(); scrollTo({top: 0}); return; }
    if (to >= grid.hits.length && event.key === "ArrowDown" && !$("more").hidden) { $("more").focus(); return; }
    if (to >= 0 && to < grid.hits.length) focusHit(to);
    return;
  }
  const acts = {
    home: () => focusHit(0), end: () => focusHit(grid.hits.length - 1), escape: () => { $("text").focus(); $("text").select(); },
    m: () => steer(hit, 1), n: () => steer(hit, AWAY), p: () => hit.modality === "audio" && playOrPause(mediaPath(hit)),
  };
  const act = acts[event.key.toLowerCase()];
  if (act && !event.repeat) { event.preventDefault(); act(); }
});
