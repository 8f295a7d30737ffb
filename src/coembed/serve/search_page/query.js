// The query: what it is, how it reads in the address bar, what of it the service is sent.

/** text: the words in the box. terms: the rest of the mix. filters: in the service's own syntax. */
const query = {text: "", weight: 1, terms: [], filters: [], modality: null, diversity: 0, keywords: 0};
const AWAY = -0.5;
/** Dropped pictures and sounds by key: they live in this tab, not in the address. */
const uploads = new Map();

const isEmpty = () => !plainWords(query.text) && !query.terms.length && !wordTerms(query.text).length;

// `red shoe -leather +canvas -"patent leather"`: signed words at the start or after a space are
// terms of their own. A hyphen inside a word is a hyphen.
const SIGNED = /(^|\s)([+-])(?:"([^"]+)"|([^\s"+-][^\s"]*))/g;
const plainWords = text => text.replace(SIGNED, " ").replace(/\s+/g, " ").trim();
function wordTerms(text) {
  return [...text.matchAll(SIGNED)].map(([, , sign, quoted, word]) => ({kind: "text", value: (quoted || word).trim(), weight: sign === "-" ? AWAY : 1})).filter(term => term.value);
}

/** All terms of the query in order: the words of the box first. */
function allTerms() {
  const words = plainWords(query.text);
  return [...(words ? [{kind: "text", value: words, weight: query.weight, box: true}] : []), ...wordTerms(query.text).map(term => ({...term, box: true, signed: true})), ...query.terms];
}

const sameTerm = (one, other) => one.kind === other.kind && (one.key || one.value) === (other.key || other.value);

/** Put a term into the mix; one that is there already takes the new weight. */
function mixIn(term) {
  const there = query.terms.find(other => sameTerm(other, term));
  if (there) there.weight = term.weight;
  else query.terms.push(term);
}

/** Signed words leave the box for chips of their own. */
function takeSignedWords() {
  for (const term of wordTerms(query.text)) mixIn(term);
  if (SIGNED.test(query.text)) query.text = plainWords(query.text);
  SIGNED.lastIndex = 0;
}

/** The terms as POST /search takes them. */
function asked() {
  return allTerms().map(term => {
    const weight = Math.round(100 * term.weight) / 100;
    if (term.kind === "text") return {text: term.value, weight};
    if (term.kind === "item") return {item: term.value, weight};
    return {[term.kind]: uploads.get(term.key).data, weight};
  });
}

// --- the address

function toAddress(item = null) {
  const said = new URLSearchParams();
  if (query.text.trim()) said.set("q", query.text.trim());
  if (query.weight !== 1) said.set("w", number(query.weight));
  for (const term of query.terms) said.append("mix", `${number(term.weight)}:${term.kind}:${term.key || term.value}`);
  for (const filter of query.filters) said.append("f", filter);
  if (query.modality) said.set("in", query.modality);
  if (query.diversity) said.set("diversity", number(query.diversity));
  if (query.keywords) said.set("keywords", number(query.keywords));
  if (item) said.set("item", item);
  const text = said.toString();
  return text ? `?${text}` : location.pathname;
}

/** Read the address into the query. How many dropped things it names that this tab has not. */
function fromAddress() {
  const said = new URLSearchParams(location.search);
  const between = (name, low, high, otherwise) => {
    const value = Number(said.get(name));
    return said.has(name) && Number.isFinite(value) ? clamp(value, low, high) : otherwise;
  };
  query.text = said.get("q") || "";
  query.weight = between("w", -2, 2, 1) || 1;
  query.filters = said.getAll("f").filter(filter => filter.trim());
  query.modality = said.get("in");
  query.diversity = between("diversity", 0, 1, 0);
  query.keywords = between("keywords", 0, 1, 0);
  query.terms = [];
  let missing = 0;
  for (const text of said.getAll("mix")) {
    const [, weight, kind, value] = /^(-?[\d.]+):(text|item|image|audio):(.+)$/s.exec(text) || [];
    if (!kind || !Number(weight)) continue;
    const term = {kind, weight: clamp(Number(weight), -2, 2)};
    if (kind === "text" || kind === "item") mixIn({...term, value});
    else if (recall(value)) mixIn({...term, key: value});
    else missing += 1;
  }
  return missing;
}

/** A dropped thing by its key, also after a reload of this tab. */
function recall(key) {
  if (!uploads.has(key)) {
    const kept = stored(() => JSON.parse(sessionStorage.getItem(`coembed-upload-${key}`)));
    if (kept && kept.data && kept.type) uploads.set(key, {...kept, url: `data:${kept.type};base64,${kept.data}`});
  }
  return uploads.has(key);
}

// --- filters

/** `colour=red,blue` → {column, sign, values}; null for what does not read as a filter. */
function readFilter(text) {
  const found = /^\s*([^=<>!]+?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*$/s.exec(text);
  return found && {column: found[1], sign: found[2], values: readWords(found[3])};
}

function readWords(text) {
  const words = [];
  const pattern = /\s*(?:"((?:[^"]|"")*)"|([^,]*))\s*(?:,|$)/gy;
  let found;
  while (pattern.lastIndex < text.length && (found = pattern.exec(text))) words.push(found[1] !== undefined ? found[1].replaceAll('""', '"') : found[2].trim());
  return words;
}

const writeWord = word => /[",\n\r]|^\s|\s$/.test(word) ? `"${word.replaceAll('"', '""')}"` : word;
const writeFilter = (column, sign, values) => `${column}${sign}${values.map(value => writeWord(String(value))).join(",")}`;

/** The values that a column must have one of. */
function wanted(column) {
  for (const text of query.filters) {
    const filter = readFilter(text);
    if (filter && filter.column === column && filter.sign === "=") return filter.values;
  }
  return [];
}

/** Let a column have one of `values`; none lifts the filter. */
function want(column, values) {
  const at = query.filters.findIndex(text => { const filter = readFilter(text); return filter && filter.column === column && filter.sign === "="; });
  const rest = values.length ? [writeFilter(column, "=", values)] : [];
  if (at >= 0) query.filters.splice(at, 1, ...rest);
  else query.filters.push(...rest);
}

/** The bounds of a number column: [least, most], null where open. */
function bounds(column) {
  let range = [null, null];
  for (const text of query.filters) {
    const filter = readFilter(text);
    if (!filter || filter.column !== column) continue;
    if (filter.sign.startsWith(">")) range = [Number(filter.values[0]), range[1]];
    if (filter.sign.startsWith("<")) range = [range[0], Number(filter.values[0])];
  }
  return range;
}

function bound(column, least, most) {
  query.filters = query.filters.filter(text => { const filter = readFilter(text); return !(filter && filter.column === column && "<>".includes(filter.sign[0])); });
  if (least !== null) query.filters.push(`${column}>=${least}`);
  if (most !== null) query.filters.push(`${column}<=${most}`);
}

function exclude(column, value) {
  const text = writeFilter(column, "!=", [value]);
  if (!query.filters.includes(text)) query.filters.push(text);
}

/** All filters of a column go. */
function lift(column) {
  query.filters = query.filters.filter(text => { const filter = readFilter(text); return !filter || filter.column !== column; });
}

/** A filter in words: "colour is red or blue". */
function filterWords(text) {
  const filter = readFilter(text);
  if (!filter) return text;
  const values = filter.values.join(", ");
  const said = {"=": `: ${values}`, "!=": `: not ${values}`, "<": ` under ${values}`, "<=": ` up to ${values}`, ">": ` over ${values}`, ">=": ` from ${values}`};
  return title(filter.column) + said[filter.sign];
}
