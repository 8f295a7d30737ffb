// A picture or a sound of one's own: dropped, pasted or chosen.

// What is sent as it is; anything else that the browser can draw is drawn anew.
const PLAIN_IMAGES = new Set(["image/jpeg", "image/png", "image/webp"]);
const LONGEST_PX = 1600;
const BIG_BYTES = 1.5e6;

const readAsDataUrl = blob => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Failure("That file cannot be read"));
  reader.readAsDataURL(blob);
});

/** A large picture is made smaller before it travels: no tower looks at that many pixels. */
async function lighten(file) {
  if (PLAIN_IMAGES.has(file.type) && file.size <= BIG_BYTES) return file;
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { return file; }  // the service says what is wrong with it
  const scale = Math.min(1, LONGEST_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", {width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale))});
  const brush = canvas.getContext("2d");
  brush.fillStyle = "#fff";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return await new Promise(resolve => canvas.toBlob(blob => resolve(blob || file), "image/jpeg", .93));
}

function kindOfFile(file) {
  if (file.type.startsWith("image/")) return "image";
  if (file.type.startsWith("audio/") || /\.(wav|flac|mp3|ogg|opus|m4a|aac|aiff?)$/i.test(file.name)) return "audio";
  return null;
}

async function takeFile(file) {
  const kind = kindOfFile(file);
  const takes = ["image", "audio"].filter(modality => release.modalities.includes(modality));
  const what = takes.map(modality => `a ${kindOf(modality)}`).join(" or ");
  if (!takes.includes(kind)) {
    toast(takes.length ? `${file.name || "That"} is not ${what}` : "This model takes words only");
    return;
  }
  try {
    const light = kind === "image" ? await lighten(file) : file;
    const url = await readAsDataUrl(light);
    const data = url.slice(url.indexOf(",") + 1);
    const most = release.limits.max_upload_bytes;
    if (most && data.length + 4096 > most) { toast(`${file.name || "That"} is too large: the service takes up to ${number(most / 1e6 * .74, 0)} MB`); return; }
    const key = keyOf(data);
    const name = /^image\.\w+$/.test(file.name) || !file.name ? `pasted ${kindOf(kind)}` : file.name;
    const kept = {data, type: light.type || file.type || "application/octet-stream", name, kind};
    uploads.set(key, {...kept, url});
    stored(() => sessionStorage.setItem(`coembed-upload-${key}`, JSON.stringify(kept)));  // for a reload; a full store is no matter
    // A new picture replaces the one before it: looking for both at once is what the mix is for,
    // and starts from a hit.
    query.terms = query.terms.filter(term => term.kind !== kind);
    mixIn({kind, key, weight: 1});
    announce(`Searching with ${name}`);
    if ($("details").open) leaveFor(changed);
    else changed();
    $("text").focus({preventScroll: true});
  } catch (error) {
    toast(error.message || "That file cannot be read");
  }
}

/** A short name of some content, the same for the same content. */
function keyOf(data) {
  let hash = 0xcbf29ce484222325n;  // FNV-1a: only this tab's own things are told apart by it
  for (let place = 0; place < data.length; place += Math.max(1, data.length >> 14)) hash = ((hash ^ BigInt(data.charCodeAt(place))) * 0x100000001b3n) & 0xffffffffffffffffn;
  return `${hash.toString(36)}-${data.length.toString(36)}`;
}

$("upload").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) takeFile(file);
});

const holdsFile = event => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
let inside = 0;
addEventListener("dragenter", event => { if (holdsFile(event)) { inside += 1; document.body.classList.add("dropping"); event.preventDefault(); } });
addEventListener("dragover", event => { if (holdsFile(event)) { event.preventDefault(); event.dataTransfer.dropEffect = "copy"; } });
addEventListener("dragleave", event => { if (holdsFile(event)) { inside = Math.max(0, inside - 1); if (inside === 0) document.body.classList.remove("dropping"); } });
addEventListener("drop", event => {
  if (!holdsFile(event)) return;
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dropping");
  const file = [...event.dataTransfer.files].find(kindOfFile) || event.dataTransfer.files[0];
  if (file) takeFile(file);
});
addEventListener("paste", event => {
  const file = [...(event.clipboardData ? event.clipboardData.files : [])].find(kindOfFile);
  if (!file || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  takeFile(file);
});
