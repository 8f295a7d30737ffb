// Filters as chips: each column opens a surface of values with counts, a range, or yes and no.

let allColumns = false;
const FEW = 5;

/** A column whose values hardly repeat (a product number) is no facet. */
function looksLikeIds(column) {
  if (column.kind !== "text" && column.kind !== "mixed") return false;
  const covered = column.values.reduce((sum, {count}) => sum + count, 0);
  return column.values.length === 0 || (column.num_values !== column.values.length && covered < .1 * release.now.num_items);
}

function columnsInOrder() {
  const rank = column => looksLikeIds(column) ? 2 : column.values.length === 1 ? 1 : 0;
  const share = column => column.values.reduce((sum, {count}) => sum + count, 0);
  return [...release.columns].sort((one, other) => rank(one) - rank(other) || (one.kind === "number") - (other.kind === "number") || share(other) - share(one));
}

function drawFilters() {
  if (!release.now) return;
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.column : null;
  const columns = columnsInOrder();
  const active = column => query.filters.some(text => (readFilter(text) || {}).column === column.name);
  // Of sounds only, a picture's columns say nothing: those of the hits come first.
  const fits = column => !query.modality || !grid.hits.length || grid.hits.some(hit => hit.modality === query.modality && column.name in hit.attributes);
  const fitting = columns.filter(column => !looksLikeIds(column) && fits(column));
  const numeric = fitting.filter(column => column.kind === "number").slice(0, 2);
  const first = [...fitting.filter(column => column.kind !== "number").slice(0, FEW), ...numeric];
  const shown = columns.filter(column => allColumns || first.includes(column) || active(column));
  const chips = shown.map(column => columnChip(column));
  const known = new Set(release.columns.map(column => column.name));
  const others = query.filters.filter(text => {
    const filter = readFilter(text);
    return !filter || !known.has(filter.column) || filter.sign === "!=";
  });
  for (const text of others) chips.push(removable(filterWords(text), () => { takeOff(text); changed(); focusFilters(); }));
  const more = columns.length - shown.length;
  if (more > 0 || allColumns) chips.push(make("button", {type: "button", class: "chip quiet-chip", "aria-expanded": String(allColumns), "data-column": "~", onclick: () => { allColumns = !allColumns; drawFilters(); }}, allColumns ? "Fewer filters" : plural(more, "more filter")));
  if (query.filters.length > 1) chips.push(make("button", {type: "button", class: "chip quiet-chip", onclick: () => { query.filters = []; changed(); focusFilters(); }}, "Clear filters"));
  $("filters").replaceChildren(...chips);
  if (focused) { const again = $("filters").querySelector(`[data-column="${CSS.escape(focused)}"]`); if (again) again.focus(); }
  const set = (query.diversity ? 1 : 0) + (query.keywords ? 1 : 0);
  $("options").classList.toggle("on", set > 0);
  $("options").querySelector("span").textContent = set ? `Options · ${set}` : "Options";
}

const takeOff = text => { query.filters = query.filters.filter(other => other !== text); };
const focusFilters = () => ($("filters").querySelector("button") || $("text")).focus();

function removable(words, remove, extra = {}) {
  return make("span", {class: "chip on split", ...extra}, make("span", {class: "words"}, words), make("button", {type: "button", class: "off", "aria-label": `Remove the filter ${words}`, onclick: remove}, icon("x")));
}

/** The button of a column stays the same, as its surface hangs on it while the chips are drawn anew. */
const openers = new Map();
function openerOf(name) {
  if (!openers.has(name)) {
    const opener = make("button", {type: "button", "data-column": name}, make("span", {}), icon("down"));
    hang(opener, {label: `Filter by ${title(name)}`, name: "facet", fill: surface => fillFacet(surface, release.columns.find(column => column.name === name))});
    openers.set(name, opener);
  }
  return openers.get(name);
}

function columnChip(column) {
  const name = title(column.name);
  const values = wanted(column.name);
  const [least, most] = bounds(column.name);
  let words = name;
  if (values.length) words = `${name}: ${values.length > 2 ? `${values.slice(0, 2).join(", ")} +${values.length - 2}` : values.map(value => column.kind === "bool" ? {true: "yes", false: "no"}[value] || value : value).join(", ")}`;
  else if (least !== null || most !== null) words = most === null ? `${name} from ${number(least)}` : least === null ? `${name} up to ${number(most)}` : `${name} ${number(least)} – ${number(most)}`;
  const on = words !== name;
  const opener = openerOf(column.name);
  opener.className = on ? "words" : "chip";
  opener.firstElementChild.textContent = clip(words, 42);
  if (!on) return opener;
  return make("span", {class: "chip on split"}, opener, make("button", {type: "button", class: "off", "aria-label": `Remove the filter ${words}`, onclick: () => { lift(column.name); changed(); opener.focus(); }}, icon("x")));
}

function fillFacet(surface, column) {
  surface.append(make("h2", {}, title(column.name)));
  if (column.kind === "number") fillRange(surface, column);
  else if (column.kind === "bool") fillValues(surface, {...column, values: ["true", "false"].map(value => ({value, count: (column.values.find(one => String(one.value).toLowerCase() === value) || {count: null}).count, words: value === "true" ? "Yes" : "No"}))});
  else fillValues(surface, column);
}

function fillValues(surface, column) {
  const chosen = new Set(wanted(column.name));
  const values = column.values.map(entry => ({...entry, value: String(entry.value)})).filter(entry => entry.value.trim());
  for (const value of chosen) if (!values.some(entry => entry.value === value)) values.unshift({value, count: null});
  const greatest = Math.max(1, ...values.map(({count}) => count || 0));
  const apply = () => { want(column.name, [...chosen]); changed(); };
  const rows = values.map(({value, count, words}) => {
    const bar = make("i");
    bar.style.width = `${100 * (count || 0) / greatest}%`;
    const tick = make("input", {type: "checkbox", checked: chosen.has(value), onchange: event => { if (event.target.checked) chosen.add(value); else chosen.delete(value); apply(); }});
    return make("label", {class: "value", "data-value": value}, tick, make("span", {class: "name"}, words || value), make("span", {class: "count"}, count === null || count === undefined ? "" : whole(count)), bar);
  });
  const list = make("div", {class: "values"}, rows);
  const truncated = column.kind !== "bool" && column.num_values !== column.values.length;
  if (rows.length > 8) {
    const find = make("input", {type: "search", placeholder: truncated ? "Find, or write any value" : "Find", "aria-label": `Find a value of ${title(column.name)}`, oninput: () => {
      const wantedText = find.value.trim().toLowerCase();
      for (const row of rows) row.hidden = !row.dataset.value.toLowerCase().includes(wantedText);
    }, onkeydown: event => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      const text = find.value.trim();
      const shown = rows.filter(row => !row.hidden);
      const value = shown.length === 1 ? shown[0].dataset.value : text;
      if (!value || !(shown.length === 1 || truncated)) return;
      chosen.add(value);
      if (shown.length === 1) shown[0].querySelector("input").checked = true;
      find.value = "";
      find.dispatchEvent(new Event("input"));
      apply();
    }});
    surface.append(find);
  }
  surface.append(list);
}

function fillRange(surface, column) {
  const low = Number.isFinite(column.min) ? column.min : 0;
  const high = Number.isFinite(column.max) && column.max > low ? column.max : low + 1;
  const exact = Number.isInteger(low) && Number.isInteger(high) && high - low > 1;
  const step = exact ? 1 : 10 ** Math.floor(Math.log10(high - low) - 2);
  const tidy = value => Number(value.toFixed(exact ? 0 : Math.max(0, -Math.floor(Math.log10(step)))));
  const [least, most] = bounds(column.name);
  const slide = (value, label) => make("input", {type: "range", min: low, max: high, step: "any", value, "aria-label": label});
  const field = (value, placeholder, label) => make("input", {type: "number", step: "any", value: value === null ? "" : value, placeholder: number(placeholder), "aria-label": label, inputMode: "decimal"});
  const from = slide(least === null ? low : least, `${title(column.name)}, at least`);
  const to = slide(most === null ? high : most, `${title(column.name)}, at most`);
  const fromField = field(least, low, `${title(column.name)}, from`);
  const toField = field(most, high, `${title(column.name)}, up to`);
  const track = make("div", {class: "track"}, make("i"), from, to);
  const paint = () => {
    track.style.setProperty("--from", `${100 * (from.value - low) / (high - low)}%`);
    track.style.setProperty("--to", `${100 * (to.value - low) / (high - low)}%`);
  };
  const apply = debounce(() => {
    const read = input => input.value.trim() === "" || !Number.isFinite(Number(input.value)) ? null : Number(input.value);
    bound(column.name, read(fromField), read(toField));
    changed();
  }, 250);
  const slid = (moved, other, sign, input, end) => {
    if (sign * (moved.value - other.value) > 0) moved.value = other.value;
    input.value = Math.abs(moved.value - end) < step / 2 ? "" : tidy(Number(moved.value));
    paint();
    apply();
  };
  from.addEventListener("input", () => slid(from, to, 1, fromField, low));
  to.addEventListener("input", () => slid(to, from, -1, toField, high));
  for (const [input, slider, end] of [[fromField, from, low], [toField, to, high]]) input.addEventListener("input", () => { slider.value = input.value === "" ? end : clamp(Number(input.value), low, high); paint(); apply(); });
  paint();
  surface.append(track, make("div", {class: "fields"}, fromField, make("span", {"aria-hidden": "true"}, "–"), toField));
}

hang($("options"), {label: "Options", name: "options", fill: surface => {
  const slider = (name, words, why, ends) => {
    const input = make("input", {type: "range", min: 0, max: 1, step: .05, value: query[name], id: `option-${name}`, "aria-describedby": `option-${name}-why`, oninput: debounce(() => { query[name] = Number(input.value); changed(); }, 200)});
    return make("div", {class: "option"}, make("label", {for: `option-${name}`}, words), make("p", {id: `option-${name}-why`}, why), input, make("div", {class: "ends", "aria-hidden": "true"}, ends.map(end => make("span", {}, end))));
  };
  surface.append(
    make("h2", {}, "Options"),
    slider("diversity", "Variety", "Passes over hits that look like one that is shown already.", ["the nearest", "the most varied"]),
    release.now && !release.now.keywords ? "" : slider("keywords", "Words in captions", "Lets captions that hold the very words of the query count too.", ["meaning only", "words only"]),
    make("button", {type: "button", class: "plain", onclick: () => { query.diversity = query.keywords = 0; surface.hidePopover(); $("options").focus(); changed(); }}, "Back to usual"),
  );
}});
