// Two pictures over each other, of which the left one ends at a line. All is drawn from `state`:
// zoom in screen pixels a picture pixel, x and y of the picture's corner in the frame.
const state = { zoom: 1, x: 0, y: 0, fits: true, split: 50 };
const shown = { value: null };
const part = (name) => element.querySelector("." + name);
const room = () => ({ width: part("frame").clientWidth, height: part("frame").clientHeight });
const between = (low, x, high) => Math.min(Math.max(x, low), high);

function fitting() {
  const { width, height } = room();
  return Math.min(width / shown.value.width, height / shown.value.height);
}

function draw() {
  if (!shown.value) return;
  const { width, height } = room(), { value } = shown;
  if (state.fits) state.zoom = fitting();
  const wide = value.width * state.zoom, high = value.height * state.zoom;
  state.x = wide <= width ? (width - wide) / 2 : between(width - wide, state.x, 0);
  state.y = high <= height ? (height - high) / 2 : between(height - high, state.y, 0);
  for (const name of ["under", "over"]) {
    Object.assign(part(name).style, {
      width: wide + "px", height: high + "px", transform: `translate(${state.x}px, ${state.y}px)`,
    });
  }
  // at fit the line crosses the picture alone; zoomed, the frame
  const left = Math.max(0, state.x), right = Math.min(width, state.x + wide);
  const at = left + ((right - left) * state.split) / 100;
  part("line").style.left = at + "px";
  part("over").style.clipPath = `inset(0 ${Math.max(0, wide - (at - state.x))}px 0 0)`;
  part("frame").classList.toggle("coarse", state.zoom >= 3);
  part("percent").textContent = Math.round(state.zoom * 100) + " %";
  part("split").value = state.split;
  part("split").setAttribute("aria-valuetext", `${Math.round(state.split)} % from the left`);
}

function zoom(factor, x, y) {
  const { width, height } = room(), before = state.zoom;
  x = x ?? width / 2;
  y = y ?? height / 2;
  state.zoom = between(Math.min(fitting(), 1), before * factor, 16);
  state.fits = false;
  state.x = x - ((x - state.x) * state.zoom) / before;
  state.y = y - ((y - state.y) * state.zoom) / before;
  draw();
}

function fit() { state.fits = true; draw(); }
function full(x, y) { zoom(1 / state.zoom, x, y); }
function move(x, y) { state.x += x; state.y += y; draw(); }
function split(percent) { state.split = between(0, percent, 100); draw(); }

function splitAt(x) {
  const left = Math.max(0, state.x);
  const right = Math.min(room().width, state.x + shown.value.width * state.zoom);
  split((100 * (x - left)) / (right - left));
}

function choose() {
  const { pictures } = shown.value;
  for (const [name, side] of [["over", "left"], ["under", "right"]]) {
    const picture = pictures[part(side).selectedIndex];
    part(name).src = picture.url;
    part(name).alt = `${shown.value.name}: ${picture.name}, ${picture.size} pixels`;
  }
  draw();
}

function apply(value) {
  const isNew = JSON.stringify(value) !== JSON.stringify(shown.value);
  shown.value = value && value.pictures ? value : null;
  part("compare").hidden = !shown.value;
  if (!shown.value) return;
  if (isNew || !part("left").options.length) {
    for (const [name, index] of [["left", 0], ["right", 1]]) {
      part(name).replaceChildren(...value.pictures.map((p) => new Option(p.name)));
      part(name).selectedIndex = index;
    }
    part("frame").style.aspectRatio = `${value.width} / ${value.height}`;
    Object.assign(state, { fits: true, split: 50 });
    sizes.disconnect();
    sizes.observe(part("frame"));
  }
  choose();
}

const sizes = new ResizeObserver(draw);
const keys = {
  ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0),
  ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
  "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": fit, "1": () => full(),
};

// listeners are on the root, which stays when its content is drawn anew
element.addEventListener("keydown", (event) => {
  const action = keys[event.key];
  const isRange = event.target.matches(".split") && event.key.startsWith("Arrow");
  if (!action || isRange || !event.target.closest(".frame, .split")) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
});
element.addEventListener("input", (event) => {
  if (event.target.matches(".split")) split(Number(event.target.value));
});
element.addEventListener("change", (event) => {
  if (event.target.matches("select")) choose();
});
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  ({ in: () => zoom(1.5), out: () => zoom(1 / 1.5), fit, full: () => full() })[button.className]();
});

const place = (event) => {
  const box = part("frame").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const fingers = new Map();
let drags = null;  // "line" or "picture"
element.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".frame") || event.button) return;
  fingers.set(event.pointerId, place(event));
  const onLine = event.target.closest(".line") || state.fits;
  drags = fingers.size === 1 ? (onLine ? "line" : "picture") : "pinch";
  part("frame").setPointerCapture(event.pointerId);
  if (drags === "line") splitAt(place(event)[0]);
});
element.addEventListener("pointermove", (event) => {
  if (!fingers.has(event.pointerId)) return;
  const [x, y] = place(event), [oldX, oldY] = fingers.get(event.pointerId);
  if (drags === "pinch") {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    const far = ([a, b], [c, d]) => Math.hypot(a - c, b - d);
    if (other) zoom(far([x, y], other) / Math.max(1, far([oldX, oldY], other)), ...other);
  } else if (drags === "line") splitAt(x);
  else move(x - oldX, y - oldY);
  fingers.set(event.pointerId, [x, y]);
});
for (const name of ["pointerup", "pointercancel"])
  element.addEventListener(name, (event) => fingers.delete(event.pointerId));
element.addEventListener("dblclick", (event) => {
  if (!event.target.closest(".frame")) return;
  state.fits ? full(...place(event)) : fit();
});
element.addEventListener("wheel", (event) => {
  // without Ctrl the wheel scrolls the page, as elsewhere
  if (!event.ctrlKey || !event.target.closest(".frame")) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 300), ...place(event));
}, { passive: false });

watch("value", () => apply(props.value));
apply(props.value);
