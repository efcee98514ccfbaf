// The photographs stay in the browser; a request carries them. Each is bound to a marker by its order.
const MARKER = "<|image|>";
const MOST = 4;
let photos = [];
const input = element.querySelector("input");
const list = element.querySelector("ol");
const state = element.querySelector("[role=status]");
const promptField = () => document.querySelector("#fd-prompt textarea");

function phrases() {
  const pieces = (promptField()?.value || "").split(MARKER);
  return pieces.slice(0, -1).map((piece) => piece.trim().split(/\s+/).slice(-2).join(" "));
}

function bind() {
  const words = phrases();
  list.querySelectorAll("figcaption").forEach((caption, i) => {
    caption.textContent = words[i] === undefined
      ? `${i + 1}: ${photos[i].name} has no marker in the prompt`
      : `${i + 1}: "${words[i]} ${MARKER}" is ${photos[i].name}`;
    caption.classList.toggle("fd-alert", words[i] === undefined);
  });
  const missing = words.slice(photos.length);
  const extra = photos.length - words.length;
  state.textContent = missing.length
    ? `No photograph for ${missing.map((word) => `"${word} ${MARKER}"`).join(", ")}.`
    : extra > 0
      ? `${extra} of ${photos.length} photographs have no marker ${MARKER} in the prompt.`
      : photos.length ? "Each photograph has its marker." : "";
  state.classList.toggle("fd-alert", missing.length > 0 || extra > 0);
}

function button(text, label, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

function draw() {
  list.replaceChildren(...photos.map((photo, i) => {
    const item = document.createElement("li");
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.src = photo.data;
    image.alt = `Photograph ${i + 1}: ${photo.name}`;
    const controls = document.createElement("div");
    controls.append(
      button("\u2190", `Move photograph ${i + 1} before the one on its left`, () => move(i, i - 1)),
      button("\u2192", `Move photograph ${i + 1} behind the one on its right`, () => move(i, i + 1)),
      button("\u2715", `Remove photograph ${i + 1}`, () => {
        photos.splice(i, 1);
        publish();
      }),
    );
    figure.append(image, document.createElement("figcaption"), controls);
    item.append(figure);
    item.draggable = true;
    item.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/plain", `fd${i}`));
    item.addEventListener("dragover", (event) => event.preventDefault());
    item.addEventListener("drop", (event) => {
      const from = /^fd(\d)$/.exec(event.dataTransfer.getData("text/plain"));
      if (from) {
        event.preventDefault();
        event.stopPropagation();
        move(Number(from[1]), i);
      }
    });
    return item;
  }));
  bind();
}

function move(from, to) {
  if (to < 0 || to >= photos.length) return;
  photos.splice(to, 0, ...photos.splice(from, 1));
  publish();
}

function publish() {
  props.value = photos.slice();
  draw();
}

async function add(files) {
  const refused = [];
  for (const file of files) {
    if (photos.length >= MOST) refused.push(`${file.name}: expected ${MOST} photographs at most`);
    else if (file.size > props.max_bytes) {
      refused.push(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB, expected `
        + `${props.max_bytes / 1e6} at most`);
    } else {
      const data = await new Promise((resolve, reject) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.onerror = () => reject(reader.error);
        reader.readAsDataURL(file);
      });
      photos.push({ name: file.name, data });
    }
  }
  publish();
  if (refused.length) state.textContent = `${refused.join("; ")}. ${state.textContent}`;
}

input.addEventListener("change", async () => {
  await add([...input.files]);
  input.value = "";
});
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
  event.preventDefault();
  add([...event.dataTransfer.files]);
});
element.querySelector(".fd-marker").addEventListener("click", () => {
  const field = promptField();
  const [begin, end] = [field.selectionStart, field.selectionEnd];
  const before = field.value.slice(0, begin);
  const after = field.value.slice(end);
  const text = (before && !before.endsWith(" ") ? " " : "") + MARKER
    + (after && !/^[\s.,;:]/.test(after) ? " " : "");
  field.setRangeText(text, begin, end, "end");
  field.dispatchEvent(new Event("input", { bubbles: true }));
  field.focus();
});
document.addEventListener("input", (event) => {
  if (event.target === promptField()) bind();
});
watch("value", () => {
  photos = [...(props.value || [])];
  draw();
  setTimeout(bind, 100);  // the prompt may change in the same message
});
