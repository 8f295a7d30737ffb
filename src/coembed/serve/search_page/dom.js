// Elements, words and small surfaces. All text goes in as text: nothing here reads markup.

const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element with properties and children; `class`, `data-…`, `aria-…` and `role` are attributes. */
function make(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name === "for" || name.includes("-")) made.setAttribute(name, value === true ? "" : value);
    else made[name] = value;
  }
  made.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return made;
}

function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `#i-${name}`);
}

const numbers = new Intl.NumberFormat("en");
const whole = number => numbers.format(number);
const number = (value, digits = 2) => new Intl.NumberFormat("en", {maximumFractionDigits: digits}).format(value);
const plural = (count, one, many = one + "s") => `${whole(count)} ${count === 1 ? one : many}`;
const clip = (text, length) => text.length <= length ? text : text.slice(0, length - 1).trimEnd() + "…";
/** `in_stock` → "In stock". */
function title(column) {
  const words = column.replace(/[_-]+/g, " ").trim() || column;
  return words[0].toUpperCase() + words.slice(1);
}
/** What the service says, as a sentence. */
const sentence = text => !text ? "" : text[0].toUpperCase() + text.slice(1) + (/[.!?:]$/.test(text) ? "" : ".");
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const MODALITY = {image: ["picture", "pictures"], audio: ["sound", "sounds"], text: ["text", "texts"]};
const kindOf = (modality, count = 1) => (MODALITY[modality] || ["item", "items"])[count === 1 ? 0 : 1];

function debounce(action, wait) {
  let timer = 0;
  const later = (...given) => { clearTimeout(timer); timer = setTimeout(() => action(...given), wait); };
  later.cancel = () => clearTimeout(timer);
  return later;
}

/** Say something to screen readers only. */
function announce(text) { $("status").textContent = text; }

/** A quiet word in the corner. */
function toast(text) {
  const note = make("p", {class: "toast"}, text);
  $("toasts").append(note);
  setTimeout(() => note.classList.add("gone"), 4200);
  setTimeout(() => note.remove(), 4700);
}

/**
 * A surface that hangs on a button: `fill(surface)` is called whenever it opens. Escape or a click
 * elsewhere closes it, and the keyboard goes back to the button.
 */
function hang(button, {label, fill, name = ""}) {
  const surface = make("div", {class: `surface ${name}`, role: "dialog", "aria-label": label});
  surface.popover = "auto";
  button.setAttribute("aria-haspopup", "dialog");
  button.setAttribute("aria-expanded", "false");
  const place = () => {
    const anchor = button.getBoundingClientRect();
    const sheet = innerWidth < 560;
    surface.classList.toggle("sheet", sheet);
    surface.style.left = sheet ? "" : `${clamp(anchor.left, 12, Math.max(12, innerWidth - surface.offsetWidth - 12))}px`;
    surface.style.top = sheet ? "" : `${clamp(anchor.bottom + 8, 8, Math.max(8, innerHeight - surface.offsetHeight - 8))}px`;
  };
  surface.addEventListener("toggle", event => {
    const open = event.newState === "open";
    button.setAttribute("aria-expanded", String(open));
    const listen = open ? addEventListener : removeEventListener;
    listen("resize", place);
    listen("scroll", place, {passive: true});
    if (!open) { surface.remove(); surface.replaceChildren(); }
  });
  // A press outside closes an open surface before the click arrives: on its own button too, where
  // the click must not open it again.
  let pressedOpen = false;
  const isOpen = () => surface.matches(":popover-open");
  button.addEventListener("pointerdown", () => { pressedOpen = isOpen(); });
  button.addEventListener("click", () => {
    const close = pressedOpen || isOpen();
    pressedOpen = false;
    if (close) { if (isOpen()) surface.hidePopover(); return; }
    document.body.append(surface);
    fill(surface);
    surface.showPopover();
    place();
    // Where fingers tap, a box that is focused brings up a keyboard over half of the screen.
    const first = surface.querySelector(matchMedia("(hover: none)").matches ? "input:not([type=search], [type=number]), button" : "[autofocus], input, select, button");
    if (first) first.focus({preventScroll: true});
  });
  surface.addEventListener("keydown", event => {
    if (event.key === "Escape") { event.stopPropagation(); surface.hidePopover(); button.focus(); }
  });
  return surface;
}

/** The meaning of a calibrated match: how it compares with true matches. */
function grade(match) {
  if (match === null || match === undefined) return null;
  if (match >= .4) return {word: "Strong match", bars: 4};
  if (match >= .15) return {word: "Good match", bars: 3};
  if (match >= .05) return {word: "Fair match", bars: 2};
  return {word: "Weak match", bars: 1};
}

function matchWords(match) {
  const share = Math.round(100 * match);
  if (share <= 0) return "Hardly any true match scores as low as this.";
  if (share >= 100) return "No true match of the validation set scores higher.";
  return `It scores at least as well as ${share}% of true matches do.`;
}

function meter(match) {
  const graded = grade(match);
  return make("span", {class: `meter b${graded.bars}`, "aria-hidden": "true"}, ...[1, 2, 3, 4].map(bar => make("i", {class: bar <= graded.bars ? "on" : ""})));
}
