// What is being served: its version, how good its index is, which columns can be filtered.

/** counts: items of each modality. */
const release = {now: null, columns: [], counts: {}, itemModalities: [], modalities: ["text"], limits: {}};

async function loadRelease(signal) {
  const said = await ask("/release", undefined, signal);
  release.now = said;
  release.columns = said.columns.filter(column => !/[=<>!]/.test(column.name) && !["modality", "path", "split"].includes(column.name));
  release.counts = said.item_modalities;
  release.itemModalities = Object.keys(MODALITY).filter(kind => said.item_modalities[kind] > 0);
  release.modalities = said.modalities;
  release.limits = said.limits;
  drawRelease();
}

/** Every answer names its release: another one than before is said quietly, and asked about. */
let asking = null;
function noticeRelease(named) {
  if (!named || !release.now || (named.collection === release.now.collection && named.fingerprint === release.now.fingerprint)) return;
  const before = release.now;
  release.now = {...before, ...named};
  asking ||= loadRelease().then(() => {
    tellOfRelease(before);
    drawFilters();
  }).catch(() => {}).finally(() => { asking = null; });
}

function tellOfRelease(before) {
  const {now} = release;
  if (now.collection === before.collection) return;
  toast(now.version === before.version ? `The collection is a new one: ${itemsInWords()}` : `Now searching with version ${now.version}`);
}

const listed = (words, last = "and") => words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;
/** "4,575 pictures and 392 sounds". */
const itemsInWords = () => listed(release.itemModalities.map(kind => `${whole(release.counts[kind])} ${kindOf(kind, release.counts[kind])}`)) || plural(release.now.num_items, "item");

function drawRelease() {
  const {now} = release;
  $("release").hidden = false;
  $("release").querySelector("span").textContent = `v${now.version}`;
  $("release").title = "What is being searched";
  const parts = [`${now.model}, version ${now.version}`, ...(now.recall_at_10 === null ? [] : [`Recall@10 ${number(now.recall_at_10, 3)}`]), itemsInWords()];
  $("foot-text").replaceChildren(...parts.map(part => make("span", {}, part)));
  $("headline").textContent = `Search ${listed(release.itemModalities.map(modality => kindOf(modality, 2))) || "everything"}`;
  $("subline").textContent = `${itemsInWords()}. Say what you are looking for in your own words.`;
  const takes = ["image", "audio"].filter(modality => release.modalities.includes(modality));
  $("upload").hidden = takes.length === 0;
  $("under").hidden = takes.length === 0;
  $("under-sound").hidden = !takes.includes("audio");
  $("file").accept = takes.map(modality => `${modality}/*`).join(",");
  const what = listed(takes.map(modality => `a ${kindOf(modality)}`), "or");
  $("text").maxLength = release.limits.max_query_chars;
  $("upload").setAttribute("aria-label", `Search with ${what}`);
  $("upload").title = `Search with ${what}`;
  $("drop-what").textContent = what;
  drawModality();
}

hang($("release"), {label: "What is being searched", name: "about", fill: surface => {
  const {now} = release;
  const rows = [
    ["Model", now.model], ["Version", now.version],
    ["Recall@10 of the index", now.recall_at_10 === null ? "not measured" : number(now.recall_at_10, 4)],
    ["Items", itemsInWords()],
    ["Encoded with", Object.entries(now.engines).map(([name, engine]) => `${name}: ${engine}`).join(", ")],
    ["Corpus", now.corpus], ["Collection", now.collection], ["Fingerprint", now.fingerprint],
  ];
  surface.append(
    make("h2", {tabIndex: -1, autofocus: true}, "What is being searched"),
    make("p", {}, "Every query is encoded by the model that made this collection, never by another."),
    make("dl", {}, rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))])),
  );
}});

/** All, pictures or sounds: where there is more than one kind. */
function drawModality() {
  const box = $("modality");
  const kinds = release.itemModalities;
  box.hidden = kinds.length < 2;
  const held = box.contains(document.activeElement);
  const choices = [[null, "All"], ...kinds.map(kind => [kind, title(kindOf(kind, 2))])];
  box.replaceChildren(...choices.map(([kind, words]) => {
    const chosen = query.modality === kind;
    return make("button", {type: "button", role: "radio", "aria-checked": String(chosen), "data-kind": kind || "all", tabIndex: chosen ? 0 : -1, onclick: () => chooseModality(kind)}, words);
  }));
  if (held) box.querySelector("[aria-checked=true]").focus();
}

function chooseModality(kind) {
  if (query.modality === kind) return;
  query.modality = kind;
  changed();
}

$("modality").addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (!step) return;
  event.preventDefault();
  const kinds = [null, ...release.itemModalities];
  chooseModality(kinds[(kinds.indexOf(query.modality) + step + kinds.length) % kinds.length]);
});
