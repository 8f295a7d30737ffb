// The mix: what is looked for as a row of chips, each with its sign and weight.

/** The colours of terms, in order; terms to steer away from are all of one. */
const NUM_COLOURS = 6;
const colourOf = (term, place) => term.weight < 0 ? "away" : `c${place % NUM_COLOURS}`;

/** What a term is called; an item's caption is looked up once. */
const itemWords = new Map();
function termWords(term) {
  if (term.kind === "text") return term.value;
  if (term.kind === "item") return itemWords.get(term.value) || "this item";
  return uploads.get(term.key).name;
}

function rememberItem(hit) {
  itemWords.set(hit.item_id, hit.captions && hit.captions[0] ? hit.captions[0] : kindOf(hit.modality));
}

async function lookUpItems() {
  const unknown = query.terms.filter(term => term.kind === "item" && !itemWords.has(term.value));
  for (const term of unknown) {
    itemWords.set(term.value, "");
    try { rememberItem(await ask(`/items/${encodeURIComponent(term.value)}`)); } catch { /* the search says what is wrong */ }
  }
  if (unknown.length) drawMix();
}

function drawMix() {
  const terms = allTerms();
  const row = $("mix");
  const plain = terms.length === 0 || (terms.length === 1 && terms[0].kind === "text" && terms[0].box && terms[0].weight === 1);
  row.hidden = plain;
  if (plain) { row.replaceChildren(); return; }
  const focused = row.contains(document.activeElement) ? document.activeElement.dataset.part : null;
  const chips = terms.map((term, place) => termChip(term, place, terms.length));
  row.replaceChildren(make("span", {class: "lead", "aria-hidden": "true"}, "Looking for"), make("ul", {role: "list"}, chips), terms.length > 1 || !terms[0].box ? make("button", {type: "button", class: "quiet", onclick: clearAll}, "Clear all") : null);
  if (focused) { const again = row.querySelector(`[data-part="${CSS.escape(focused)}"]`); if (again) again.focus(); }
}

/** The term as it can be changed: signed words leave the box first. */
function owned(term) {
  if (!term.signed) return term.box ? query : query.terms.find(other => sameTerm(other, term));
  takeSignedWords();
  $("text").value = query.text;
  return query.terms.find(other => sameTerm(other, term));
}

function setWeight(term, weight) {
  if (term.box && !term.signed && weight < 0) {  // what leads away is no longer the search itself
    query.text = query.text.replace(plainWords(query.text), "").trim();
    query.weight = 1;
    $("text").value = query.text;
    mixIn({kind: "text", value: term.value, weight});
    return;
  }
  owned(term).weight = weight;
}

function removeTerm(term) {
  if (term.box && !term.signed) { query.text = ""; query.weight = 1; $("text").value = ""; }
  else { owned(term); query.terms = query.terms.filter(other => !sameTerm(other, term)); }
  changed();
  (document.querySelector("#mix button") || $("text")).focus();
}

function termChip(term, place, count) {
  const words = termWords(term);
  const away = term.weight < 0;
  const size = Math.abs(term.weight);
  const part = `${term.kind}:${term.key || term.value}`;
  const sign = make("button", {
    type: "button", class: "sign", "data-part": `sign ${part}`, title: away ? "Leads away: press to lead towards" : "Leads towards: press to lead away",
    "aria-label": `${clip(words, 60)}: ${away ? "leads away" : "leads towards"}. Press to turn round`,
    onclick: () => { setWeight(term, -term.weight); changed(); },
  }, icon(away ? "minus" : "plus"));
  const output = make("output", {}, `×${number(size, 1)}`);
  const weight = make("input", {
    type: "range", min: .1, max: 2, step: .1, value: size, "data-part": `weight ${part}`, "aria-label": `Weight of ${clip(words, 60)}`,
    oninput: () => { output.textContent = `×${number(Number(weight.value), 1)}`; },
    onchange: () => { setWeight(term, Math.sign(term.weight) * Number(weight.value)); changed(); },
  });
  let face = make("span", {class: "words"}, clip(words, 34));
  if (term.kind === "item") face = [thumbnail(`/items/${encodeURIComponent(term.value)}/thumbnail?px=256`), make("span", {class: "words"}, make("small", {}, away ? "not like" : "like"), clip(words, 26))];
  if (term.kind === "image") face = [make("img", {src: uploads.get(term.key).url, alt: ""}), make("span", {class: "words"}, clip(words, 26))];
  if (term.kind === "audio") face = [make("span", {class: "sound"}, playButton(uploads.get(term.key).url, {label: words})), make("span", {class: "words"}, clip(words, 26))];
  return make("li", {class: `term ${colourOf(term, place)}`}, sign, face, count > 1 ? [weight, output] : null,
    make("button", {type: "button", class: "off", "aria-label": `Remove ${clip(words, 60)}`, onclick: () => removeTerm(term)}, icon("x")));
}

function thumbnail(path) {
  const image = make("img", {alt: "", class: "face"});
  return show(image, path, {failed: () => image.replaceWith(make("span", {class: "face"}, icon("sound")))});
}

/** More like an item, or less: its sign says which. */
function steer(hit, weight) {
  rememberItem(hit);
  mixIn({kind: "item", value: hit.item_id, weight});
  changed();
  announce(weight > 0 ? "More like this" : "Not like this");
}

function clearAll() {
  Object.assign(query, {text: "", weight: 1, terms: []});
  $("text").value = "";
  changed();
  $("text").focus();
}
