// The search itself: when to ask, what to show of the answer, what to do when there is none.

const PAGE_SIZE = 24;
const MOST_TRIES = 8;
const SLOW_MS = 1000;
const search = {running: null, shown: null, next: null, timer: 0, tries: 0, lastMs: 0, typing: false, how: "push", typedAt: 0, shelf: Math.floor(Date.now() / 864e5)};

// --- the address and the way back

function writeAddress(how, item = null) {
  const address = toAddress(item);
  const opened = item ? how === "push" || Boolean(history.state && history.state.opened) : false;
  const same = address === (location.search || location.pathname);
  history[how === "push" && !same ? "pushState" : "replaceState"]({item, opened}, "", address);
}

/** What the query and its options ask for, as one text: the same text needs no second answer. */
const asOne = () => JSON.stringify([toAddress(), asked().length]);

addEventListener("popstate", () => restore());

function restore() {
  const missing = fromAddress();
  search.typing = false;
  const item = new URLSearchParams(location.search).get("item");
  if (isEmpty() && !query.filters.length && !item) document.body.classList.add("home");
  $("text").value = query.text;
  if (missing) toast("A picture or sound that was dropped is not part of a link");
  draw();
  const opened = item ? () => { if (!details.hit || details.hit.item_id !== item) openById(item); } : closeDetails;
  if (search.shown === asOne()) opened();
  else run().then(opened);
}

function draw() {
  drawMix();
  drawFilters();
  drawModality();
  followLabels();
  lookUpItems();
  $("clear").hidden = !$("text").value;
  $("steer").hidden = !plainWords($("text").value);
  $("text").placeholder = query.terms.length ? "Add words, or −words" : "What are you looking for?";
  const first = allTerms()[0];
  document.title = first ? `${clip(termWords(first) || "Search", 60)} – coembed` : "coembed search";
}

/** The query has changed: draw it, write it into the address, ask. */
function changed(how = search.how) {
  search.how = "push";
  search.typing = false;
  typed.cancel();
  search.tries = 0;
  draw();
  writeAddress(how);
  run();
}

// --- the box

// What is typed in one go is one step of the history.
const PAUSE_MS = 2500;
const typed = debounce(() => {
  changed(search.typing ? "replace" : "push");
  search.typing = true;
}, 260);

$("text").addEventListener("input", () => {
  const now = performance.now();
  if (now - search.typedAt > PAUSE_MS) search.typing = false;
  search.typedAt = now;
  query.text = $("text").value;
  $("clear").hidden = !query.text;
  $("steer").hidden = !plainWords(query.text);
  // A slow model is asked on Enter only.
  if (search.lastMs < SLOW_MS && !/(^|\s)[+-]"?[^\s"]?$/.test(query.text)) typed();
});

$("composer").addEventListener("submit", event => {
  event.preventDefault();
  typed.cancel();
  query.text = $("text").value;
  takeSignedWords();
  $("text").value = query.text;
  changed(search.typing ? "replace" : "push");
});

function boxToTerm(weight) {
  query.text = $("text").value;
  const words = plainWords(query.text);
  takeSignedWords();
  query.text = "";
  query.weight = 1;
  if (words) mixIn({kind: "text", value: words, weight});
  $("text").value = "";
  changed();
  $("text").focus();
}
$("add").addEventListener("click", () => boxToTerm(1));
$("away").addEventListener("click", () => boxToTerm(AWAY));
$("clear").addEventListener("click", () => { query.text = ""; query.weight = 1; $("text").value = ""; changed(); $("text").focus(); });
$("text").addEventListener("keydown", event => {
  if (event.key === "ArrowDown" && grid.hits.length) { event.preventDefault(); focusHit(grid.at); }
  if (event.key === "Escape" && !$("text").value && grid.hits.length) focusHit(grid.at);
});
$("brand").addEventListener("click", event => {
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  Object.assign(query, {text: "", weight: 1, terms: [], filters: [], modality: null, diversity: 0, keywords: 0});
  $("text").value = "";
  document.body.classList.add("home");
  changed();
  scrollTo({top: 0});
  $("text").focus();
});

// --- asking

function stopWaiting() {
  if (search.running) search.running.abort();
  search.running = null;
  clearInterval(search.timer);
}

function busy(is) {
  document.body.classList.toggle("busy", is);
  $("results").setAttribute("aria-busy", String(is));
}

async function run() {
  stopWaiting();
  const one = asOne();
  const running = search.running = new AbortController();
  if (!isEmpty()) document.body.classList.remove("home");
  busy(true);
  const bones = setTimeout(drawBones, grid.hits.length ? 120 : 0);
  try {
    if (!release.now) { await loadRelease(running.signal); draw(); }
    if (isEmpty()) await rest(running.signal);
    else await find(running.signal);
    if (search.running !== running) return;
    search.shown = one;
    search.tries = 0;
  } catch (error) {
    if (error.name === "AbortError" || search.running !== running) return;
    search.shown = null;
    fail(error);
  } finally {
    clearTimeout(bones);
    if (search.running === running) { search.running = null; busy(false); }
  }
}

function body(offset) {
  return {query: asked(), filters: query.filters, modality: query.modality, limit: Math.min(PAGE_SIZE, release.limits.max_limit || PAGE_SIZE), offset, diversity: query.diversity, keywords: query.keywords, explain: allTerms().length > 1 || query.keywords > 0};
}

async function find(signal) {
  const begun = performance.now();
  const said = await ask("/search", body(0), signal);
  if (signal.aborted) return;
  search.lastMs = performance.now() - begun;
  grid.resting = false;
  search.release = said.release;
  search.next = said.next_offset;
  noticeRelease(said.release);
  $("examples").hidden = $("shuffle").hidden = true;
  const {hits} = said;
  const poor = said.nothing_matches_well && hits.length > 0;
  $("grid").classList.toggle("dim", poor);
  drawGrid(hits);
  if (query.modality) drawFilters();
  $("more").hidden = said.next_offset === null || said.next_offset === undefined;
  $("line").hidden = hits.length === 0;
  $("count").textContent = poor ? "The nearest, all the same" : hits.length === 1 ? "The only hit" : "Best matches";
  const took = said.took_ms || {};
  $("took").textContent = took.all === undefined ? "" : `${number(took.all, took.all < 10 ? 1 : 0)} ms${said.cached ? ", from the cache" : ""}`;
  $("took").title = took.encode === undefined ? "" : `encoding ${number(took.encode, 1)} ms, search ${number(took.search, 1)} ms`;
  if (hits.length === 0) noHits();
  else if (poor) poorHits(hits);
  else clearNotice();
  const best = hits.length && grade(hits[0].match);
  announce(hits.length === 0 ? "No hits" : poor ? "Nothing matches well. The nearest are shown." : `${plural(hits.length, "hit")}${best ? `, the first a ${best.word.toLowerCase()}` : ""}`);
}

$("more").addEventListener("click", async () => {
  const button = $("more");
  if (button.disabled) return;
  button.disabled = true;
  button.textContent = "Loading…";
  const shown = search.shown;
  try {
    const said = await ask("/search", body(search.next));
    if (search.shown !== shown) return;  // another search has begun meanwhile
    if (said.release.collection !== search.release.collection) {
      noticeRelease(said.release);
      await run();  // hits of two releases do not stand in one list
      return;
    }
    const known = new Set(grid.hits.map(hit => hit.item_id));
    const fresh = said.hits.filter(hit => !known.has(hit.item_id));
    const first = grid.hits.length;
    drawGrid(fresh, {append: true});
    search.next = said.next_offset;
    button.hidden = said.next_offset === null || said.next_offset === undefined;
    announce(`${plural(fresh.length, "more hit")}`);
    if (fresh.length && (document.activeElement === button || document.activeElement === document.body)) focusHit(first);
  } catch (error) {
    toast([error.message, error.hint].map(sentence).join(" "));
  } finally {
    button.disabled = false;
    button.textContent = "Show more";
  }
});

// --- nothing, or nothing good

function clearNotice() {
  $("notice").hidden = true;
  $("notice").replaceChildren();
}

function notice(heading, words, actions, kind = "") {
  $("notice").className = kind;
  $("notice").replaceChildren(make("h2", {}, heading), ...words.filter(Boolean).map(text => make("p", {}, text)), actions.some(Boolean) ? make("div", {class: "row"}, actions) : null);
  $("notice").hidden = false;
}

/** Ways out: what could be taken off the query. */
function waysOut() {
  const away = allTerms().some(term => term.weight < 0);
  // The button goes with the notice; the keyboard goes on at the results.
  const by = change => () => { change(); changed(); $("results").focus({preventScroll: true}); };
  return [
    ...query.filters.map(text => removable(filterWords(text), by(() => takeOff(text)))),
    query.filters.length > 1 ? make("button", {type: "button", class: "plain", onclick: by(() => { query.filters = []; })}, "Remove all filters") : null,
    query.modality ? make("button", {type: "button", class: "plain", onclick: by(() => { query.modality = null; })}, "Search everything") : null,
    away ? make("button", {type: "button", class: "plain", onclick: by(() => {
      takeSignedWords();
      query.terms = query.terms.filter(term => term.weight > 0);
      $("text").value = query.text;
    })}, "Drop what it leads away from") : null,
    make("button", {type: "button", class: "plain", onclick: () => { $("text").focus(); $("text").select(); scrollTo({top: 0}); }}, "Try other words"),
  ];
}

function noHits() {
  const filtered = query.filters.length > 0 || query.modality;
  notice("Nothing found", [filtered ? "No item passes these filters. Take one off:" : "The collection has nothing to show for this."], waysOut());
}

function poorHits(hits) {
  const best = grade(hits[0].match);
  notice("Nothing matches well", [`Of ${itemsInWords()}, none comes as close to this as a true match usually does${best && hits[0].match > 0 ? `: the best scores like the lowest ${Math.max(1, Math.round(100 * hits[0].match))}% of them` : ""}.`, query.filters.length || query.modality ? "Other words may help, or fewer filters:" : "Other words may help."], waysOut());
}

function fail(error) {
  clearGrid();
  $("line").hidden = $("more").hidden = $("examples").hidden = $("shuffle").hidden = true;
  const unserved = error.status === 503;
  if (!error.passing) {
    const unasked = error.status === 401;
    notice(unasked ? "A key is needed" : error.status >= 500 ? "Something went wrong in the service" : "That search cannot be done", unasked ? ["This service answers those who have its key."] : [sentence(error.message), sentence(error.hint)], [
      make("button", {type: "button", class: "plain", onclick: () => run()}, unasked ? "Give a key" : "Try again"), ...(unasked ? [] : waysOut())], "wrong");
    announce(`${error.message}. ${error.hint}`);
    return;
  }
  const heading = error.status === 429 ? "Many are searching just now" : unserved ? "Nothing is being served yet" : "The service is away";
  const again = make("button", {type: "button", class: "plain", onclick: () => run()}, "Try now");
  const counting = make("p", {class: "soft", "aria-hidden": "true"});
  const crowded = error.status === 429;
  notice(heading, crowded ? ["The service takes only so many searches at once."] : [sentence(error.message), sentence(error.hint)], [again], crowded ? "" : "wrong");
  $("notice").insertBefore(counting, $("notice").lastElementChild);
  search.tries += 1;
  if (search.tries > MOST_TRIES) { counting.textContent = "It was tried several times."; return; }
  announce(`${heading}. It is tried again by itself.`);
  let left = Math.ceil(error.retryAfter || Math.min(30, 2 ** Math.min(search.tries, 5)));
  const tick = () => {
    counting.textContent = `Trying again in ${plural(left, "second")}.`;
    if (left <= 0) { clearInterval(search.timer); run(); }
    left -= 1;
  };
  tick();
  search.timer = setInterval(tick, 1000);
}

// --- before the first query

/** A few hits for a few values of a column, changing by the day: something to look at and try. */
async function rest(signal) {
  const column = firstLabelColumn();
  const chosen = column ? wanted(column.name) : [];
  const values = column ? (chosen.length ? chosen : column.values.map(({value}) => String(value)).filter(value => value.trim())) : ["something"];
  const count = Math.min(values.length, 4);
  const start = search.shelf * count;
  const words = Array.from({length: count}, (_, place) => values[(start + place) % values.length]);
  const answers = await Promise.all(words.map(text => ask("/search", {query: [{text}], filters: query.filters, modality: query.modality, limit: Math.ceil(12 / count) + 3, diversity: .5}, signal)));
  if (signal.aborted) return;
  noticeRelease(answers[0].release);
  const seen = new Set();
  const shelf = [];
  for (let place = 0; place < 12; place += 1) for (const {hits} of answers) if (hits[place] && !seen.has(hits[place].item_id)) { seen.add(hits[place].item_id); shelf.push(hits[place]); }
  grid.resting = true;
  $("grid").classList.remove("dim");
  drawGrid(shelf.slice(0, 12));
  if (query.modality) drawFilters();
  $("more").hidden = true;
  $("line").hidden = shelf.length === 0;
  $("count").textContent = "From the collection";
  $("took").textContent = "";
  $("shuffle").hidden = shelf.length === 0 || chosen.length > 0;
  if (shelf.length) clearNotice();
  else noHits();
  drawExamples(shelf);
}

function drawExamples(shelf) {
  const captions = [...new Set(shelf.map(captionOf))].filter(caption => /^[^<>{}]{6,48}$/.test(caption) && caption.includes(" ")).slice(0, 4);
  $("examples").hidden = captions.length === 0;
  $("examples").replaceChildren(make("span", {class: "lead"}, "Try"), ...captions.map(caption => make("button", {type: "button", class: "example", onclick: () => { query.text = caption; $("text").value = caption; changed(); }}, caption)));
}

$("shuffle").addEventListener("click", () => { search.shelf += 1; run(); });

// --- keys and dress

const isTyping = target => target.isContentEditable || target.tagName === "SELECT" || target.tagName === "TEXTAREA" || (target.tagName === "INPUT" && !["checkbox", "radio", "range", "button"].includes(target.type));
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
  if (event.key === "/") { event.preventDefault(); $("text").focus(); $("text").select(); scrollTo({top: 0}); }
  if (event.key === "?") { event.preventDefault(); $("keys").showModal(); }
});
$("help").addEventListener("click", () => $("keys").showModal());
for (const dialog of [$("keys"), $("key")]) {
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
}

const dark = matchMedia("(prefers-color-scheme: dark)");
function drawTheme() {
  const theme = document.documentElement.dataset.theme;
  const isDark = theme === "dark" || (theme !== "light" && dark.matches);
  setIcon($("theme"), isDark ? "sun" : "moon");
  $("theme").setAttribute("aria-pressed", String(isDark));
  $("theme").title = isDark ? "Light mode" : "Dark mode";
  return isDark;
}
$("theme").addEventListener("click", () => {
  const theme = drawTheme() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  stored(() => localStorage.setItem("coembed-theme", theme));
  drawTheme();
});
dark.addEventListener("change", drawTheme);
drawTheme();

// A promotion under an open page shows at the next query, or within a minute.
let lookedAt = performance.now();
function lookAgain() {
  if (document.hidden || !release.now || performance.now() - lookedAt < 50_000) return;
  lookedAt = performance.now();
  const before = release.now;
  loadRelease().then(() => {
    drawFilters();
    tellOfRelease(before);
    if (before.collection !== release.now.collection) { search.shown = null; run(); }
  }).catch(() => {});
}
setInterval(lookAgain, 60_000);
document.addEventListener("visibilitychange", lookAgain);

new ResizeObserver(([entry]) => document.documentElement.style.setProperty("--top", `${Math.round(entry.target.offsetHeight)}px`)).observe($("top"));
restore();
