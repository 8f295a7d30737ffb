// Asking the service: errors with a hint, a key where one is wanted, media behind that key.

class Failure extends Error {
  constructor(message, {status = 0, hint = "", retryAfter = null} = {}) {
    super(message);
    Object.assign(this, {status, hint, retryAfter});
  }
  /** Whether the same request may well succeed in a while. */
  get passing() { return this.status === 0 || this.status === 429 || this.status === 502 || this.status === 503 || this.status === 504; }
}

const KEY = "coembed-api-key";
let apiKey = stored(() => sessionStorage.getItem(KEY)) || "";
let askingForKey = null;

/** What storage says, or null where the browser keeps none. */
function stored(read) {
  try { return read(); } catch { return null; }
}

async function send(path, body, signal) {
  const headers = apiKey ? {"x-api-key": apiKey} : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    return await fetch(path, {method: body === undefined ? "GET" : "POST", headers, signal, credentials: "same-origin", body: body === undefined ? undefined : JSON.stringify(body)});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service cannot be reached", {hint: "It may be starting again, or the connection is down."});
  }
}

async function fetchAnswer(path, body, signal) {
  let used = apiKey;
  let answer = await send(path, body, signal);
  while (answer.status === 401) {
    if (apiKey === used && !(await askForKey(Boolean(used)))) break;
    used = apiKey;
    answer = await send(path, body, signal);
  }
  if (answer.ok) return answer;
  let said = null;
  try { said = await answer.json(); } catch { /* not the service's own answer */ }
  const after = Number(answer.headers.get("retry-after"));
  throw new Failure((said && said.error) || `The service answered ${answer.status} ${answer.statusText}`.trim(), {
    status: answer.status, hint: (said && said.hint) || "", retryAfter: after > 0 ? after : null,
  });
}

async function ask(path, body, signal) {
  const answer = await fetchAnswer(path, body, signal);
  try { return await answer.json(); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service's answer was cut short");
  }
}

/** Ask for a key once, however many requests want one. Whether there is one now. */
function askForKey(refused) {
  if (askingForKey) return askingForKey;
  const dialog = $("key");
  $("key-why").textContent = refused ? "That key was not accepted. Check it and try once more." : "It is sent with every request and kept until this tab is closed.";
  $("key-why").classList.toggle("wrong", refused);
  $("key-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  askingForKey = new Promise(resolve => dialog.addEventListener("close", () => {
    askingForKey = null;
    const given = $("key-value").value.trim();
    if (dialog.returnValue !== "given" || !given) { resolve(false); return; }
    apiKey = given;
    stored(() => sessionStorage.setItem(KEY, given));
    resolve(true);
  }, {once: true}));
  return askingForKey;
}

/** An address that an <img> or <audio> can load: with a key, what was fetched with it. */
const blobs = new Map();
async function reachable(path) {
  if (!apiKey) return path;
  if (!blobs.has(path)) {
    blobs.set(path, fetchAnswer(path).then(answer => answer.blob()).then(blob => URL.createObjectURL(blob)));
    blobs.get(path).catch(() => blobs.delete(path));
    if (blobs.size > 600) {
      const [oldest, address] = blobs.entries().next().value;
      blobs.delete(oldest);
      address.then(URL.revokeObjectURL, () => {});
    }
  }
  return blobs.get(path);
}

/** Show a picture of the service's, with a second and a third try where it is busy. */
function show(image, path, {tries = 3, loaded = () => {}, failed = () => {}} = {}) {
  const load = async left => {
    const again = () => left > 1 ? setTimeout(load, 700 * (tries - left + 1), left - 1) : failed();
    image.onload = () => { image.classList.add("here"); loaded(image); };
    image.onerror = again;
    try { image.src = await reachable(path); } catch { again(); }
  };
  load(tries);
  return image;
}
