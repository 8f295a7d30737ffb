// What a dropped picture or sound is, among labels of one's choosing (zero-shot).

const labels = {key: null, names: [], column: null, found: null, failure: null, editing: false, running: null};

// The service's own sentence is of photos.
const SOUND_PROMPTS = ["{label}", "the sound of {label}"];

const textColumns = () => columnsInOrder().filter(column => column.kind === "text" && !looksLikeIds(column) && column.values.length >= 2);

/** The column whose values are the labels at first: one that says what a thing is. */
function firstLabelColumn() {
  const columns = textColumns();
  return columns.find(column => /^(kind|category|class|type|label|product_type|article|tag)$/i.test(column.name)) || columns[0] || null;
}

/** The dropped thing that is shown: the last one in the mix. */
const labelled = () => query.terms.findLast(term => term.kind === "image" || term.kind === "audio") || null;

function takeLabels(column) {
  labels.column = column ? column.name : null;
  labels.names = column ? column.values.map(({value}) => String(value)).filter(value => value.trim()).slice(0, release.limits.max_labels || 100) : [];
}

async function classify() {
  const term = labelled();
  if (!term || labels.names.length < 2) { labels.found = null; drawLabels(); return; }
  if (labels.running) labels.running.abort();
  const running = labels.running = new AbortController();
  drawLabels();
  try {
    const said = await ask("/classify", {[term.kind]: uploads.get(term.key).data, labels: labels.names, ...(term.kind === "audio" ? {prompts: SOUND_PROMPTS} : {})}, running.signal);
    if (labels.running !== running) return;
    labels.found = [...said.labels].sort((one, other) => other.probability - one.probability);
    labels.failure = null;
    noticeRelease(said.release);
  } catch (error) {
    if (error.name === "AbortError" || labels.running !== running) return;
    labels.found = null;
    labels.failure = error;
  }
  labels.running = null;
  drawLabels();
}
const classifySoon = debounce(classify, 350);

/** After every change of the query: show the panel, hide it, ask again. */
function followLabels() {
  const term = labelled();
  const key = term ? term.key : null;
  if (key === labels.key) return;
  Object.assign(labels, {key, found: null, failure: null, editing: false});
  if (term && labels.names.length === 0) takeLabels(firstLabelColumn());
  if (term) classify();
  else { if (labels.running) labels.running.abort(); drawLabels(); }
}

function changeLabels(names) {
  labels.names = names;
  labels.column = null;
  drawLabels();
  classifySoon();
}

function drawLabels() {
  const term = labelled();
  const panel = $("labels");
  panel.hidden = !term;
  if (!term) { panel.replaceChildren(); return; }
  const upload = uploads.get(term.key);
  const focused = panel.contains(document.activeElement) ? document.activeElement.id : "";
  const face = term.kind === "image" ? make("img", {src: upload.url, alt: `The dropped picture, ${upload.name}`}) : make("div", {class: "disc"}, playButton(upload.url, {label: upload.name}));
  const rows = (labels.found || []).slice(0, 5).map((entry, place) => {
    const bar = make("i");
    bar.style.width = `${100 * clamp(entry.probability, 0, 1)}%`;
    const share = entry.probability < .005 ? "<1%" : `${Math.round(100 * entry.probability)}%`;
    return make("li", {class: place === 0 ? "first" : ""}, make("button", {type: "button", title: `Add “${entry.label}” to the mix`, "aria-label": `${entry.label}, ${share}. Add it to the mix`, onclick: () => { mixIn({kind: "text", value: entry.label, weight: 1}); changed(); }},
      make("span", {class: "name"}, entry.label), make("span", {class: "bar"}, bar), make("span", {class: "share"}, share)));
  });
  let middle;
  if (labels.failure) middle = make("p", {class: "wrong"}, [labels.failure.message, labels.failure.hint].map(sentence).join(" "));
  else if (labels.names.length < 2) middle = make("p", {class: "soft"}, "Give it at least two labels to choose among.");
  else if (!labels.found) middle = make("ul", {class: "bones", "aria-hidden": "true"}, [0, 1, 2, 3, 4].map(() => make("li", {}, make("i"))));
  else middle = make("ul", {role: "list", class: labels.running ? "busy" : ""}, rows);
  const edit = make("button", {type: "button", class: "quiet", id: "labels-edit", "aria-expanded": String(labels.editing), onclick: () => { labels.editing = !labels.editing; drawLabels(); if (labels.editing) $("labels-new").focus(); }}, icon("tag"), labels.editing ? "Done" : `Choose among ${plural(labels.names.length, "label")}`);
  panel.replaceChildren(
    make("div", {class: "face"}, face),
    make("div", {class: "said"}, make("div", {class: "head"}, make("h2", {}, term.kind === "image" ? "What is in the picture" : "What is heard"), edit), middle, labels.editing ? labelEditor() : null),
  );
  const again = focused && $(focused);
  if (again) again.focus();
}

function labelEditor() {
  const column = make("select", {id: "labels-column", "aria-label": "Take the labels from a column", onchange: () => { takeLabels(textColumns().find(one => one.name === column.value)); drawLabels(); classify(); }},
    labels.column ? null : make("option", {value: ""}, "own labels"), textColumns().map(one => make("option", {value: one.name, selected: one.name === labels.column}, title(one.name))));
  const fresh = make("input", {id: "labels-new", type: "text", placeholder: "Add a label", "aria-label": "Add a label", onkeydown: event => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const added = fresh.value.split(",").map(name => name.trim()).filter(name => name && !labels.names.includes(name));
    if (added.length) changeLabels([...labels.names, ...added]);
  }});
  return make("div", {class: "editor"},
    make("div", {class: "row"}, textColumns().length ? make("label", {}, make("span", {}, "Labels of"), column) : null, fresh, make("button", {type: "button", class: "quiet", id: "labels-none", onclick: () => { changeLabels([]); $("labels-new").focus(); }}, "Remove all")),
    make("div", {class: "names"}, labels.names.map(name => make("span", {class: "chip on split"}, make("span", {class: "words"}, clip(name, 40)), make("button", {type: "button", class: "off", "aria-label": `Remove the label ${name}`, onclick: () => { changeLabels(labels.names.filter(other => other !== name)); $("labels-new").focus(); }}, icon("x"))))));
}
